"""Programs to read and to run, a file each: its docstring says what it shows, and what to type.

`notifications.py` is the one that `make demo` runs. The others are durable runs: `contact_upload.py`, `order_saga.py`,
`drip_campaign.py`, `human_approval.py`.
"""
