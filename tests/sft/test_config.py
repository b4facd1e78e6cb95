"The settings of fine-tuning, and the presets."

import pytest
from sft_models import config

from gti_nb.core import GTIError
from gti_nb.sft.config import PRESETS, SFTConfig, preset


def test_settings_that_do_not_exist_are_named():
    with pytest.raises(GTIError, match="lr_scheduler_type: .*'cosin'.*did you mean 'cosine'"):
        config(lr_scheduler_type="cosin")
    for wrong in ("10", 2.0):
        with pytest.raises(GTIError, match="steps: got .*expected a whole number"):
            config(steps=wrong)
    with pytest.raises(GTIError, match="lora_alpha: got -1"):
        config(lora_alpha=-1)
    with pytest.raises(GTIError, match="metric_for_best_model: .*set eval_steps too"):
        config(metric_for_best_model="loss")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations(name):
    made = preset(name, examples=1000)
    assert isinstance(made, SFTConfig) and preset(name, steps=7).steps == 7
    assert (made.mode, made.lora_r, made.lora_alpha, made.lora_dropout) == {
        "paper": ("qlora", 8, 32, 0.05),
        "lcrec": ("lora", 8, 32, 0.05),
        "demo": ("full", 8, 32, 0.05),
    }[name]
