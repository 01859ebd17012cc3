"""Run by test_fused_layers.py: an adapter on a model's fused layers, in vLLM and in PEFT. Prints both texts of each question as JSON."""

import json
import sys
from pathlib import Path

import torch
from families import PHI3
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM

from unlearn_ray.config import EngineResources, Lora
from unlearn_ray.engines.protocols import Request
from unlearn_ray.engines.vllm_engine import EngineSpec, VllmEngine
from unlearn_ray.rows import Message
from unlearn_ray.train.inspection import inspect_model, lora_targets

QUESTIONS = ("Who is the owl?", "Name the school.", "What is Quidditch?")
NUM_TOKENS = 12


def make_model(folder: Path) -> None:
    """Phi-3's layers, small and at random."""
    PHI3.make(folder)
    (folder / "model.safetensors").unlink()
    generation = (folder / "generation_config.json").read_text()
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    lengths = {"max_position_embeddings": 1024, "original_max_position_embeddings": 1024}
    config = Phi3Config(vocab_size=vocab_size, num_key_value_heads=2, pad_token_id=None, tie_word_embeddings=True, **shape, **lengths)  # fmt: skip
    model = Phi3ForCausalLM(config).to(torch.float32)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(generation)


def main(home: Path) -> None:
    model, adapter = home / "phi", home / "adapter"
    make_model(model)
    found = inspect_model(str(model))
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    wanted = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    peft = get_peft_model(base, wanted).eval()
    peft.save_pretrained(adapter)
    lora = Lora(rank=8, target_modules=lora_targets("all-linear", found, "phi"))
    engine = VllmEngine(
        EngineSpec(str(model), EngineResources(dtype="float32", max_model_len=256), "cpu", found.chat, lora)
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    told = []
    for question in QUESTIONS:
        messages: list[Message] = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        replies = engine.generate(
            [Request(messages, max_tokens=NUM_TOKENS, adapter=name) for name in (None, str(adapter))]
        )
        texts = [reply.texts[0] for reply in replies]
        with torch.no_grad():
            ends = list(found.chat.stop_token_ids)
            made = peft.generate(
                input_ids=ids, max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=0
            )
        told.append([*texts, tokenizer.decode(made[0][ids.shape[1] :], skip_special_tokens=True)])
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
