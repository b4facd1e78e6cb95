"""What works exactly with which family of models, measured on tiny random ones.

python tests/model_table.py writes docs/models.md; tests/model/test_families.py checks that it is true.
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from model_families import FAMILIES, plain_model
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForCausalLM

from gti_nb.assets.tiny import tiny_tokenizer
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.decode.beam import beam_search
from gti_nb.decode.trie import SidTrie
from gti_nb.grounding.loss import GroundingLoss, reference_loss
from gti_nb.grounding.pairs import encode_pairs, grounding_pairs
from gti_nb.grounding.stage import GroundingConfig, ground
from gti_nb.model.extended import ExtendedModel
from gti_nb.sft.adapters import add_adapters, merge_adapters
from gti_nb.sft.config import SFTConfig
from gti_nb.sft.examples import example_from
from gti_nb.sft.loss import SFTLoss, check_loss
from gti_nb.sft.stage import finetune
from gti_nb.sid.codes import SemanticIds

SIDS = SemanticIds(torch.stack([torch.arange(40) % 4, torch.arange(40) // 4], 1))
COLUMNS = ("extend", "ground", "fine-tune", "LoRA", "beam", "save")
TOY = {}  # the toy data, loaded once


def extended_model(family: str, **settings) -> ExtendedModel:
    "A model of a family with new rows that differ."
    extended = ExtendedModel.extend(plain_model(family, **settings), tiny_tokenizer(), SIDS)
    noise = torch.Generator().manual_seed(0)
    for p in extended.new_parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=noise)
    return extended


def two_pairs(extended: ExtendedModel, direction: str) -> list:
    "The shortest and the longest pair of a template, encoded."
    if "toy" not in TOY:
        TOY["toy"] = load_dataset("toy")
    name = "text_to_sid" if direction == "text_to_sid" else "sid_to_title"
    pairs = encode_pairs(extended, grounding_pairs(TOY["toy"], SIDS, (name,), wordings=1, holdout=0).train)
    order = (pairs.prefix.map(len) + pairs.rest.map(len)).to_numpy().argsort(kind="stable")
    return pairs.iloc[order[[0, -1]]]


def close(a: torch.Tensor, b: torch.Tensor, bound: float = 2e-4) -> bool:
    return bool((a.double() - b.double()).norm() <= bound * b.double().norm().clamp(min=1e-6))


def extending(extended: ExtendedModel, plain) -> str:
    ids = torch.randint(320, (2, 100), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert close(extended.model(ids).logits[..., :320], plain(ids).logits[..., :320])
    return "yes"


def grounding(extended: ExtendedModel) -> str:
    "Loss and gradient of both directions against the paper's algorithm on the plain model; then two steps of the stage."
    extended.train_only(backbone=False)
    loss = GroundingLoss(extended)
    for direction in ("text_to_sid", "sid_to_text"):
        both = two_pairs(extended, direction)
        batch = {k: both[k].to_list() for k in ("prefix", "rest", "n_targets")}
        value = loss(**batch, fixed=int(both.fixed.iloc[0]))
        grads = torch.autograd.grad(value, extended.new_parameters())
        own, gradient = reference_loss(extended, **batch)
        mine = grads[0] if extended.tied else torch.stack(grads[:2])
        assert abs(value.item() - own) < 1e-4 and close(mine, gradient), (direction, value.item(), own)
    before = extended.pretrained_hash()
    pairs = grounding_pairs(TOY["toy"], SIDS, ("title_to_sid", "sid_to_title"), wordings=1, holdout=0.1)
    ground(extended, pairs, GroundingConfig(steps=2, batch_size=4, precision="fp32", warmup_steps=0), progress=False)
    assert extended.pretrained_hash() == before
    return "yes, pairs read whole" if loss.whole else "yes"


def examples(extended: ExtendedModel) -> list:
    "A batch of unequal lengths, the longest far beyond the windows, with a prefix in common."
    rng = np.random.default_rng(0)
    start = rng.integers(3, 320, 12).tolist()
    batch = []
    for n in (2, 6, 30, 90):
        ids = [*start, *rng.integers(3, 320, n).tolist(), *extended.token_ids[n % 40].tolist()]
        batch.append(example_from("retrieval", ids, len(ids) - 2))
    return batch


def own_mean(extended: ExtendedModel, batch: list) -> torch.Tensor:
    "The mean loss of the targets by the model's own logits, each example alone."
    total = torch.zeros(())
    for e in batch:
        ids = torch.from_numpy(e.ids)
        logits = extended.model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        total = total + cross_entropy(logits[e.scored[1:]], ids[e.scored], reduction="sum")
    return total / sum(int(e.scored.sum()) for e in batch)


def finetuning(extended: ExtendedModel) -> str:
    "Loss and gradient of all weights against the model's own, padded and packed."
    batch = examples(extended)
    extended.train_only(backbone=True)
    parameters = extended.backbone_parameters() + extended.new_parameters()

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(grads, parameters, strict=True)])

    own = own_mean(extended, batch)
    expected = gradient(own)
    loss = SFTLoss(extended)
    check_loss(loss, batch)
    value = loss(batch)[0]
    assert abs(value.item() - own.item()) < 1e-4 and close(gradient(value), expected, 1e-3), (value.item(), own.item())
    packed = SFTLoss(extended, packing=256)
    try:
        check_loss(packed, batch)
    except GTIError:
        return "yes, packing refused"
    value = packed(batch)[0]
    assert abs(value.item() - own.item()) < 1e-4 and close(gradient(value), expected, 1e-3), "packed"
    return "yes"


def low_rank(extended: ExtendedModel) -> str:
    "Two steps with adapters; then adapters of any value give the same logits beside the layers as merged, and all of them train."
    batch = examples(extended)
    finetune(extended, [batch] * 2, SFTConfig(steps=2, mode="lora", precision="fp32", batch_size=4), progress=False)
    matrices = add_adapters(extended, r=2, dropout=0.0)
    for i, p in enumerate(matrices):
        p.data = 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    grads = torch.autograd.grad(SFTLoss(extended)(batch)[0], matrices, allow_unused=True)
    assert all(g is not None and g.any() for g in grads), "an adapter does not train"
    with torch.no_grad():
        beside = extended.model(torch.from_numpy(batch[-1].ids)[None]).logits
        merge_adapters(extended)
        merged = extended.model(torch.from_numpy(batch[-1].ids)[None]).logits
    assert close(beside, merged)
    bare = any(p.ndim > 2 and "conv" not in name for name, p in extended.model.named_parameters())
    return "yes, not in the experts" if bare else "yes"


def beams(extended: ExtendedModel) -> str:
    "The lists of a search against the log-probabilities of every item by the plain model."
    plain, rng = extended.merge(), np.random.default_rng(0)
    prompts = [rng.integers(3, 320, n).tolist() for n in (5, 90)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = beam_search(extended, prompts, SidTrie(SIDS), beams=40)
    for prompt, items, scores in zip(prompts, found.items, found.scores, strict=True):
        ids = torch.tensor([prompt + sid for sid in extended.token_ids.tolist()])
        with torch.no_grad():
            logp = log_softmax(plain(ids).logits[:, -3:-1].double(), -1)
        true = logp.gather(2, ids[:, -2:, None]).sum((1, 2))
        assert torch.equal(items, true.argsort(descending=True)) and close(scores, true[items])
    text = " ".join(str(w.message) for w in said)
    return "yes, a cache per beam" if "cache of its own" in text else "yes, read anew" if "read anew" in text else "yes"


def saving(extended: ExtendedModel) -> str:
    "The saved folder in plain transformers gives the same logits."
    ids = torch.tensor([[5, 9, *extended.token_ids[7].tolist(), 40, *extended.token_ids[11].tolist()]])
    with tempfile.TemporaryDirectory() as tmp, torch.no_grad():
        extended.save(Path(tmp) / "m")
        plain = AutoModelForCausalLM.from_pretrained(Path(tmp) / "m").eval()
        again = ExtendedModel.load(Path(tmp) / "m")
        expected = extended.model(ids).logits
        assert close(plain(ids).logits, expected) and close(again.model(ids).logits, expected)
    return "yes"


def measured(family: str) -> dict[str, str]:
    "Column -> what is true of a family."
    try:
        extended = extended_model(family)
    except GTIError as e:
        return {"extend": str(e)}
    found = {"extend": extending(extended, plain_model(family))}
    for column, ask in zip(COLUMNS[1:], (grounding, finetuning, low_rank, beams, saving), strict=True):
        try:
            with warnings.catch_warnings():
                if column != "beam":
                    warnings.simplefilter("ignore")
                found[column] = ask(extended)
        except GTIError as e:
            found[column] = str(e)
    return found


HEAD = """<!-- Generated by tests/model_table.py; tests/model/test_families.py checks that it is true. -->
# Which models work

Measured on tiny random models of each family, two layers deep, in fp32, with sequences shorter and longer than their windows. "Exact"
means: a stage's loss and gradient are those that the model itself gives for each sequence alone, the lists of a search are those of the
plain model's log-probabilities, and the saved folder gives the same logits in plain transformers. What is not exact is refused before any
training. A model that is not in the table is asked in the same way: `ExtendedModel.extend` refuses it, or it is exact.

Positions: a text longer than a model's positions is refused before a stage starts. Where rotary positions depend on the longest text of a
batch (`longrope`, `dynamic`), the limit is the length of the first training, such as 4,096 tokens of Phi 3.
"""
NOTES = {
    "pairs read whole": "it cannot continue exactly from a prompt that was read before; grounding reads every pair from its first token, "
    "which takes longer. Models with a sliding window do so only for pairs longer than the window.",
    "packing refused": "it does not keep packed examples apart; `packing=0` is exact.",
    "not in the experts": "adapters stand beside linear layers; the experts of this family are one tensor per layer and stay as they are.",
    "a cache per beam": "tree attention is not exact for it (or not beyond its window), so every beam keeps a cache; "
    "the lists are the same.",
    "read anew": "it keeps no cache that beams could share, so every beam is read anew after each code; the lists are the same.",
}


def page(found: dict[str, dict[str, str]]) -> str:
    "The page docs/models.md."
    lines = [f"| family | model type | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    refused = []  # sentences
    for family, row in found.items():
        cells = []
        for column in COLUMNS:
            text = row.get(column, "")
            if text and not text.startswith("yes"):
                if text not in refused:
                    refused.append(text)
                text = f"refused ({refused.index(text) + 1})"
            cells.append(text)
        lines.append(f"| {family} | `{FAMILIES[family][0]}` | {' | '.join(cells)} |")
    notes = [f"- *{name}*: {text}" for name, text in NOTES.items()]
    sentences = [f"{i}. `{text}`" for i, text in enumerate(refused, 1)]
    return "\n".join([HEAD, *lines, "", *notes, "", "What a refusal says:", "", *sentences, ""])


def measure_all() -> dict[str, dict[str, str]]:
    "Every family, measured."
    return {family: measured(family) for family in FAMILIES}


if __name__ == "__main__":
    (Path(__file__).resolve().parents[1] / "docs/models.md").write_text(page(measure_all()))
