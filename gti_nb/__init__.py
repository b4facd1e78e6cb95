"""Give a language model new tokens, start them in the right place, and measure whether it helped.

The way from data to metrics, one name per step:

    load_dataset, load_queries      items with histories, items with queries
    encode_text                     item texts -> unit vectors
    RQKMeans, RQVAE                 vectors -> SemanticIds
    load_base, ExtendedModel        a language model -> the same model with new tokens
    initialize, INITIALIZERS        where the new rows start
    grounding_pairs, ground         train the new rows alone (GroundingConfig)
    finetune                        train the model on the task (SFTConfig)
    user_set, evaluate_model        prompts -> ranked items and one row of metrics per user
    metrics, compare                means; differences with intervals and p-values
    diagnose                        what the new rows look like, in numbers
    train_arm                       all of it in one call (ArmConfig, ArmResult)
    Recommender                     a trained model in use: a history or a query in, items out

Every name is loaded when it is first used, so importing the package takes an instant.
A chapter is a module: `gti_nb.sid.kmeans` is exported from the notebook of that name in nbs/05_sid.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "load_dataset": "data.dataset",
    "load_queries": "data.queries",
    "encode_text": "text.vectors",
    "SemanticIds": "sid.codes",
    "RQKMeans": "sid.kmeans",
    "RQVAE": "sid.rqvae",
    "load_base": "assets.base",
    "ExtendedModel": "model.extended",
    "initialize": "initializers.registry",
    "INITIALIZERS": "initializers.registry",
    "grounding_pairs": "grounding.pairs",
    "GroundingConfig": "grounding.stage",
    "ground": "grounding.stage",
    "SFTConfig": "sft.config",
    "finetune": "sft.stage",
    "user_set": "evaluate.model",
    "evaluate_model": "evaluate.model",
    "metrics": "evaluate.ranking",
    "compare": "evaluate.compare",
    "diagnose": "diagnostics.summary",
    "ArmConfig": "settings",
    "ArmResult": "result",
    "train_arm": "arm",
    "Recommender": "recommend.recommender",
}  # public name -> the chapter it lives in
__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:  # for type checkers and editors; a test holds both lists equal
    from .arm import train_arm as train_arm
    from .assets.base import load_base as load_base
    from .data.dataset import load_dataset as load_dataset
    from .data.queries import load_queries as load_queries
    from .diagnostics.summary import diagnose as diagnose
    from .evaluate.compare import compare as compare
    from .evaluate.model import evaluate_model as evaluate_model
    from .evaluate.model import user_set as user_set
    from .evaluate.ranking import metrics as metrics
    from .grounding.pairs import grounding_pairs as grounding_pairs
    from .grounding.stage import GroundingConfig as GroundingConfig
    from .grounding.stage import ground as ground
    from .initializers.registry import INITIALIZERS as INITIALIZERS
    from .initializers.registry import initialize as initialize
    from .model.extended import ExtendedModel as ExtendedModel
    from .recommend.recommender import Recommender as Recommender
    from .result import ArmResult as ArmResult
    from .settings import ArmConfig as ArmConfig
    from .sft.config import SFTConfig as SFTConfig
    from .sft.stage import finetune as finetune
    from .sid.codes import SemanticIds as SemanticIds
    from .sid.kmeans import RQKMeans as RQKMeans
    from .sid.rqvae import RQVAE as RQVAE
    from .text.vectors import encode_text as encode_text


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
