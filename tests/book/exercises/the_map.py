"""Right and wrong answers to the exercises of "The map"."""

from __future__ import annotations

FAMILIES = {"a": "regularisation", "b": "isolation", "c": "replay", "d": "growth"}
TOLD = {"derpp": "not needed", "der": "not needed", "den": "needed", "packnet": "needed", "mas": "not needed"}

RIGHT = {
    "the_map-1": [FAMILIES, {letter: family.upper() for letter, family in FAMILIES.items()}],
    "the_map-2": [TOLD, {method: word.title() for method, word in TOLD.items()}],
    "the_map-3": [2604, 8_000_000 // 3072],
}

WRONG = {
    "the_map-1": {
        f"{letter}: {family}": {**FAMILIES, letter: family}
        for letter, right in FAMILIES.items()
        for family in FAMILIES.values()
        if family != right
    },
    "the_map-2": {
        "both der": {**TOLD, "der": "needed", "derpp": "needed"},
        "der needed": {**TOLD, "der": "needed"},
        "derpp needed": {**TOLD, "derpp": "needed"},
        "den not needed": {**TOLD, "den": "not needed"},
        "packnet not needed": {**TOLD, "packnet": "not needed"},
        "mas needed": {**TOLD, "mas": "needed"},
    },
    "the_map-3": {
        "not a whole number": 8e6 / 3072,
        "importances alone": 1302,
        "the weights too": 12_000_000 // 3072,
        "off by four": 8e6 / 12288,
        "one channel": 8_000_000 // 1024,
        "rounded up": 2605,
    },
}
