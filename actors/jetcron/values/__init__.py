"""Values of users and their types: data as a function asks for it, a result as it was before it was stored."""
