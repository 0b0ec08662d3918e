"""Trains the demo's model: a multimodal Llama 4 of under a million parameters that reads handwritten digits.

    python -m jobs.demo.make_model [FOLDER]

Everything is real but the size: `Llama4ForConditionalGeneration` with a vision tower, a mixture of experts in every
second layer, chunked attention, a byte-level tokenizer with Llama 4's special tokens, a chat template, and
`Llama4Processor`. It is trained on the demo data's training split alone with a fixed seed, on the CPU, in some minutes.
The sizes obey vLLM's CPU kernels: `head_dim` 32, `attention_chunk_size` a multiple of 128, a vision MLP of four times
its width.
"""

import io
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4ImageProcessor,
    Llama4Processor,
    PreTrainedTokenizerFast,
)

SEED = 4
EPOCHS = 90
BATCH = 64
PEAK_LR = 1.5e-3
TILE_PX = 56
SHIFTS_PX = [(0, 0), (14, 0), (-14, 0), (0, 14), (0, -14)]

HERE = Path(__file__).parent

SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|step|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|finetune_right_pad|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|image|>",
    "<|patch|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
]

# (system prompt, question, form of the answer); training draws one a batch, so that the model follows the question.
ASKED: list[tuple[str | None, str, str]] = [
    (None, "Which digit is this?", "{}"),
    ("You label handwritten digits.", "Which digit is this?", "{}"),
    (None, "What number is written here?", "{}"),
    ("You label handwritten digits.", "Which digit is this? Answer in JSON.", '{{"digit": "{}"}}'),
]


def build_processor() -> Llama4Processor:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot|>",
        pad_token="<|finetune_right_pad|>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    template = (HERE / "chat_template.jinja").read_text()
    tokenizer.chat_template = template
    images = Llama4ImageProcessor(size={"height": TILE_PX, "width": TILE_PX}, max_patches=4, resize_to_max_canvas=True)
    return Llama4Processor(
        image_processor=images, tokenizer=tokenizer, patch_size=14, pixel_shuffle_ratio=0.5, chat_template=template
    )


def build_config(tokenizer: Any) -> Llama4Config:
    def token_id(token: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(token))

    ids = {
        "bos_token_id": token_id("<|begin_of_text|>"),
        "eos_token_id": token_id("<|eot|>"),
        "pad_token_id": token_id("<|finetune_right_pad|>"),
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 64,
        "intermediate_size_mlp": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "max_position_embeddings": 4096,
        "attention_chunk_size": 512,
        "use_qk_norm": True,
        "router_jitter_noise": 0.0,
        "tie_word_embeddings": False,
        **ids,
    }
    vision = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "image_size": TILE_PX,
        "patch_size": 14,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 128,
        "projector_output_dim": 128,
        "vision_output_dim": 128,
    }
    config = Llama4Config(
        text_config=text,
        vision_config=vision,
        boi_token_index=token_id("<|image_start|>"),
        eoi_token_index=token_id("<|image_end|>"),
        image_token_index=token_id("<|patch|>"),
        tie_word_embeddings=False,
        **ids,
    )
    config.architectures = ["Llama4ForConditionalGeneration"]
    return config


def load_split(split: str) -> tuple[list[Image.Image], list[str]]:
    images, labels = [], []
    for path in sorted((HERE / "data").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            if row["split"] == split:
                images.append(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
                labels.append(row["label"])
    return images, labels


def shift(image: Image.Image, right_px: int, down_px: int) -> Image.Image:
    """The image moved over a black ground."""
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, -right_px, 0, 1, -down_px))


def pixels_of(processor: Llama4Processor, images: list[Image.Image]) -> torch.Tensor:
    """float32 (images, tiles, 3, tile_px, tile_px); all images must have as many tiles."""
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"].float()
    return pixels.reshape(len(images), -1, *pixels.shape[1:])


def prompt_ids(processor: Llama4Processor, system: str | None, question: str) -> list[int]:
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    messages = [{"role": "system", "content": system}, user] if system else [user]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    blank = Image.new("RGB", (TILE_PX * 2, TILE_PX * 2))
    out = processor(text=[text], images=[blank], add_special_tokens=False)
    return list(out["input_ids"][0])


def accuracy(model: Any, prompt: list[int], pixels: torch.Tensor, labels: list[str], tokenizer: Any) -> float:
    """Share of images whose first greedy token is the label's digit."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(labels), 128):
            part = pixels[start : start + 128].to(model.dtype)
            ids = torch.tensor([prompt] * len(part))
            best = model(input_ids=ids, pixel_values=part.flatten(0, 1)).logits[:, -1].argmax(-1)
            said = [tokenizer.decode([t]) for t in best.tolist()]
            right += sum(a == b for a, b in zip(said, labels[start:], strict=False))
    return right / len(labels)


def train(processor: Llama4Processor) -> Any:
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = processor.tokenizer
    model = Llama4ForConditionalGeneration._from_config(build_config(tokenizer), attn_implementation="sdpa").float()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters")
    images, labels = load_split("train")
    shifted = [pixels_of(processor, [shift(i, dx, dy) for i in images]) for dx, dy in SHIFTS_PX]
    held_images, held_labels = load_split("test")
    held = pixels_of(processor, held_images)
    prompts = [prompt_ids(processor, system, question) for system, question, _ in ASKED]

    steps = EPOCHS * (len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps, pct_start=0.1)
    started = time.time()
    for epoch in range(EPOCHS):
        model.train()
        order = rng.sample(range(len(labels)), len(labels))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            which = rng.choices(range(len(ASKED)), weights=[6, 1, 1, 2])[0]
            answers = [
                tokenizer.encode(ASKED[which][2].format(labels[i]) + "<|eot|>", add_special_tokens=False) for i in rows
            ]
            ids = torch.tensor([prompts[which] + answer for answer in answers])
            target = ids.clone()
            target[:, : len(prompts[which])] = -100
            pixels = torch.stack([shifted[rng.randrange(len(shifted))][i] for i in rows])
            logits = model(input_ids=ids, pixel_values=pixels.flatten(0, 1)).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), target[:, 1:].flatten(), ignore_index=-100
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if epoch % 4 == 3:
            right = accuracy(model, prompts[0], held, held_labels, tokenizer)
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}, held out {right:.2%}, {time.time() - started:.0f} s")
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    print(f"in bfloat16: held out {accuracy(model, prompts[0], held, held_labels, tokenizer):.2%}")
    return model


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "model"
    random.seed(SEED)
    np.random.seed(SEED)
    processor = build_processor()
    model = train(processor)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    main()
