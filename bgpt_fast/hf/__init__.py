"""bgpt_fast's models as classes of transformers; importing this registers them with its Auto classes.

Needs transformers 5.23 or newer (`pip install ".[hf]"`).
"""

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from bgpt_fast.hf.causal_lm import BGPTFastForCausalLM
from bgpt_fast.hf.classification import BGPTFastForSequenceClassification
from bgpt_fast.hf.config import BGPTFastConfig
from bgpt_fast.hf.tokenizer import BGPTFastTokenizer

__all__ = ["BGPTFastConfig", "BGPTFastForCausalLM", "BGPTFastForSequenceClassification", "BGPTFastTokenizer"]

AutoConfig.register(BGPTFastConfig.model_type, BGPTFastConfig, exist_ok=True)
AutoModelForCausalLM.register(BGPTFastConfig, BGPTFastForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(BGPTFastConfig, BGPTFastForSequenceClassification, exist_ok=True)
AutoTokenizer.register(BGPTFastConfig, BGPTFastTokenizer, exist_ok=True)
