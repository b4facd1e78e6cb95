"Every settings class of the package refuses, field by field, what its annotation and its meaning exclude."

import dataclasses
import importlib
import math
import numbers
import pkgutil
import types
import typing

import pytest

import gti_nb
from gti_nb.core import GTIError

ROOMS = ("data", "sid", "training", "grounding", "sft", "evaluate", "settings", "tokenize")
NEEDED = {"StageSettings": {"name": "sft", "steps": 3}}
BASE = {"SFTConfig": {"eval_steps": 1}, "GroundingConfig": {"eval_steps": 1}}


def settings_classes():
    "The dataclasses whose names say that they hold settings, and the quantizers."
    found = {}
    for module in pkgutil.walk_packages(gti_nb.__path__, "gti_nb."):
        if module.name.split(".")[1] not in ROOMS:
            continue
        for name, kind in vars(importlib.import_module(module.name)).items():
            settings = name.endswith(("Config", "Settings")) or hasattr(kind, "codes") and hasattr(kind, "levels") and hasattr(kind, "fit")
            if dataclasses.is_dataclass(kind) and kind.__module__ == module.name and (settings or name in ("Policies", "Loading")):
                found[name] = kind
    return found


CLASSES = settings_classes()
FIELDS = [(name, f.name) for name, kind in CLASSES.items() for f in dataclasses.fields(kind)]


def parts(hint):
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def test_all_of_them_are_found():
    stages = {"GroundingConfig", "FullConfig", "SFTConfig", "EvaluationConfig", "SASRecConfig", "ArmConfig", "StageSettings"}
    quantizers = {"RQVAEConfig", "RQKMeans", "ResidualFSQ", "ProductQuantizer", "RandomCodes"}
    assert stages | quantizers | {"TokenizeConfig", "Policies"} <= set(CLASSES)


@pytest.mark.parametrize("name, field", FIELDS)
def test_a_wrong_value_is_refused_at_once(name, field):
    kind = CLASSES[name]
    hint = typing.get_type_hints(kind)[field]
    wrong = [b"bytes", {1: object()}, 10**400, 2**70, math.nan, -math.inf]
    if not {str, typing.Any, object} & set(parts(hint)):
        wrong += ["1e-3", "cosin"]
    if set(parts(hint)) <= {int, float, str, type(None)}:
        wrong += [True, [1], {"a": 1}]
    if int in parts(hint) and float not in parts(hint):
        wrong += [100.5, 3.0]
    if set(parts(hint)) <= {int, float} and (name, field) != ("Policies", "min_rating"):
        wrong += [-1, -1.0]
    if type(None) not in parts(hint):
        wrong.append(None)
    for value in wrong:
        if isinstance(value, numbers.Number) and typing.Any in parts(hint):
            continue
        with pytest.raises(GTIError):
            kind(**NEEDED.get(name, {}) | BASE.get(name, {}) | {field: value})


def test_choices_are_refused_with_the_closest():
    for kind, field, value, right in [
        (CLASSES["GroundingConfig"], "lr_scheduler_type", "cosin", "cosine"),
        (CLASSES["SFTConfig"], "lr_scheduler_type", "lineer", "linear"),
        (CLASSES["SFTConfig"], "mode", "lorra", "lora"),
        (CLASSES["TasksConfig"], "weights", {"retrievl": 1.0}, "retrieval"),
        (CLASSES["TokenizeConfig"], "collisions", "hungarain", "hungarian"),
    ]:
        with pytest.raises(GTIError, match=f"did you mean '{right}'"):
            kind(**{field: value})
