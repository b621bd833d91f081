"""The protocol's rules as the models' edges follow them, by name, each of which a test can switch off.

Owns the names and nothing else. A rule is switched off in the model's actors, never in the product's code.
"""

CHAIN = {
    "a held subject names the occurrence": "else the subject is used again for the next tick",
    "run ids are deterministic": "else each publication draws its own",
    "only far-off ticks are purged": "else those about to be released are purged with their revision",
    "a successor settles first": "else it governs from the moment it is written",
    "an intent goes before a successor": "else a freeze before the write lets it settle too short",
    "the time is taken after the intent": "else before it, and a freeze between the two does the same",
    "who meets an intent asks again": "else turns its tick as if nothing were about to change",
    "the past is looked for after the entry": "else before it",
    "an intent is looked for before the past": "else after it, and what is stored in between shows in neither",
    "a successor is written as its intent ends": "else though that was forgotten, or another copy's is there",
    "cron-sync goes by the server's clock": "else by its own, which may be off by the lead",
    "a superseded tick is settled from past": "else it is dropped as outdated",
    "a restored registry is armed anew": "else a tick newer than its entry is dropped",
    "a late tick looks ahead": "else it catches up although its chain has gone on",
    "late ticks are one group": "else each runs, whatever the catch-up policy",
    "the gap comes before the batch": "else it is appended once the batch stands",
    "run and next tick are one batch": "else the next tick is stored first, then the run",
    "ticks are acknowledged once stored": "else on arrival",
    "try again is not success": "else a batch nobody confirmed counts as stored",
    "a known id repeats turn by turn": "else the whole batch counts as stored",
    "absence is the leader's to tell": "else what a replica lacks does not exist",
    "time is read before the definitions": "else a freeze between the two settles what a newer revision governs",
    "what follows an entry is repeated": "else a command that finds its own entry is done",
    "an older command yields": "else a copy that was frozen puts its command over a newer one",
    "definitions are compared and set": "else written blindly",
    "commands come one at a time": "else several copies apply them at once",
    "a broken chain goes on from when it was whole": "else from now",
    "whole means up to its earliest tick": "else up to now, though ticks may be overdue",
    "whole means up to its oldest command": "else up to now, though a new revision may have no tick yet",
    "what is overdue is published again": "else a failed release is left alone",
}

EXECUTOR = {
    "a claim is fenced": "else every append is stored, whoever wrote meanwhile",
    "an own append is known by its nonce": "else a refused repetition counts as somebody else's",
    "the delivery count proves nothing": "else a second delivery means that the first owner is dead",
    "a living executor keeps its run": "else its run's message is acknowledged",
    "who cannot be read is alive": "else counts as dead",
    "a message that is gone is taken over": "else any other message of the turn makes this one a duplicate",
    "what follows a record is repeated": "else a message whose turn is past is acknowledged at once",
    "a wake-up that overtook is handed back": "else acknowledged",
    "lost attempts are limited": "else a run that kills its process goes on for ever",
    "a lost attempt costs no retry": "else it counts as one",
    "absence is the leader's to tell": "else what a replica lacks does not exist",
    "a lapsed executor takes a new id": "else it goes on under the old one",
    "who gave up an append takes a new id": "else it goes on under the old one",
    "an absent later turn was forgotten": "else it is claimed as if it were new",
    "recorded, then acknowledged": "else the outcome is recorded after the acknowledgement",
    "followed up, then acknowledged": "else what follows is stored after the acknowledgement",
    "who lost the run sends nothing": "else it acknowledges all the same",
}

WAITING = EXECUTOR | {
    "a wait is stored, then journaled": "else it is stored after the journal says that it stands",
    "waits are read once more": "else not, once the journal says that the run waits",
    "what comes is stored, then the run is woken": "else it is woken first",
    "an event heard again wakes again": "else it leaves alone what it has met before",
    "at its time a wait is looked at": "else it is over, whatever has come",
    "the time is told before the look": "else after it, which may have taken long",
    "a child nobody knows is started again": "else it was started once",
    "whether a run waits is the leader's to tell": "else a replica's, which may be old",
    "whether a wait stands is the leader's to tell": "else a replica's",
    "a turn held again in vain is removed": "else it stands until its time",
}
"""Those of runs that wait, besides the executors' own."""


class Rules:
    """All rules but those switched off."""

    def __init__(self, known: dict[str, str], *off: str) -> None:
        unknown = [rule for rule in off if rule not in known]
        if unknown:
            raise KeyError(f"no such rules: {unknown}")
        self._on = frozenset(known) - frozenset(off)
        self._known = known

    def __contains__(self, rule: str) -> bool:
        if rule not in self._known:
            raise KeyError(rule)
        return rule in self._on
