"""The same model as `speechverse serve` answers with, written straightforwardly with transformers: Whisper's encoder, the
adapter version, SmolLM2 with the version's LoRA. Same weights, same prompt, greedy; without the CTC head's share in the choice
of tokens (`decoding.ctc_weight`), which transformers has no place for.

A clip is encoded at its own length, as ours is, not padded to 30 s: transformers' own `WhisperEncoder.forward` would insist on that.
"""

import json
import pathlib

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperFeatureExtractor, WhisperModel

FRAME_SAMPLES = 320  # of an encoder frame, at 16 kHz
TOKENS_MAX = 128
EPS = 1e-5


class SpeechModel:
    def __init__(self, encoder, llm, adapter, dtype="bfloat16", instruction="Transcribe the speech."):
        dtype = getattr(torch, dtype)
        self.extract = WhisperFeatureExtractor.from_pretrained(encoder)
        self.encoder = WhisperModel.from_pretrained(encoder, dtype=dtype, attn_implementation="sdpa").encoder.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(llm)
        base = AutoModelForCausalLM.from_pretrained(llm, dtype=dtype, attn_implementation="sdpa")
        self.llm = PeftModel.from_pretrained(base, pathlib.Path(adapter) / "lora").merge_and_unload().eval()
        self.table = self.llm.get_input_embeddings()
        with safe_open(pathlib.Path(adapter) / "adapter.safetensors", "pt") as file:
            self.config = json.loads(file.metadata()["speechverse.adapter"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        assert self.config["mix"] == "paper" and self.config["activation"] == "gelu", self.config
        assert self.config["positions"] in ("ctc_segments", "ctc_posteriors") and self.config["summary"], self.config
        classes = tensors.pop("ctc.classes")
        self.weights = {name: tensor.float() for name, tensor in tensors.items()}
        self.classes = rows = self.table.weight[classes].float()  # [C, H]
        self.unit_classes = unit(torch.cat([self.weights["ctc.blank"][None], rows]))  # [1+C, H]
        ids = lambda text: self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
        self.prefix = ids("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")
        self.suffix = torch.cat([ids("\n" + instruction), ids("<|im_end|>\n<|im_start|>assistant\n")])

    @torch.inference_mode()
    def transcribe(self, clips):
        """Texts and numbers of tokens for clips, lists of f32 samples at 16 kHz, as one batch."""
        states, lengths = self.encode(clips)
        positions = self.adapt(states, lengths)
        prompts = [torch.cat([self.embed(self.prefix), row.to(self.table.weight.dtype), self.embed(self.suffix)]) for row in positions]
        longest = max(map(len, prompts))
        pad = lambda row: F.pad(row, (0, 0, longest - len(row), 0))  # on the left, so that all answers begin at one place
        embeds = torch.stack([pad(row) for row in prompts])
        mask = torch.stack([F.pad(torch.ones(len(row), dtype=torch.long), (longest - len(row), 0)) for row in prompts])
        ids = self.llm.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=TOKENS_MAX, do_sample=False,
                                pad_token_id=self.tokenizer.eos_token_id)
        tokens = (ids != self.tokenizer.eos_token_id).sum(1).tolist()
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [(text.strip(), count) for text, count in zip(texts, tokens)]

    def embed(self, ids):
        return self.table(ids)

    def encode(self, clips):
        """All hidden states, the output in the last place: `[L+1, B, T, D]` f32, and the frames of each clip."""
        lengths = [-(-len(clip) // FRAME_SAMPLES) for clip in clips]
        padded = [F.pad(torch.as_tensor(clip), (0, length * FRAME_SAMPLES - len(clip))) for clip, length in zip(clips, lengths)]
        mels = [self.extract(clip.numpy(), sampling_rate=16_000, padding=False, truncation=False, return_tensors="pt")
                .input_features[0] for clip in padded]  # [M, 2T]
        frames = max(lengths)
        x = torch.stack([F.pad(mel, (0, 2 * frames - mel.shape[1])) for mel in mels]).to(self.encoder.conv1.weight.dtype)
        valid = torch.arange(frames)[None] < torch.tensor(lengths)[:, None]  # [B, T]
        x = F.gelu(self.encoder.conv1(x)) * valid.repeat_interleave(2, 1)[:, None]
        x = F.gelu(self.encoder.conv2(x)).transpose(1, 2)  # [B, T, D]
        x = x + self.encoder.embed_positions.weight[:frames]
        mask = None
        if len(clips) > 1:
            mask = torch.zeros(len(clips), 1, 1, frames, dtype=x.dtype).masked_fill(~valid[:, None, None], torch.finfo(x.dtype).min)
        states = [x]
        for layer in self.encoder.layers:
            x = layer(x, mask)
            x = x[0] if isinstance(x, tuple) else x
            states.append(x)
        states[-1] = self.encoder.layer_norm(x)
        return torch.stack(states).float(), lengths

    def adapt(self, states, lengths):
        """What the language model reads of each clip: `[P, H]` f32."""
        w = self.weights
        share = w["mix.weight"] / len(w["mix.weight"])
        x = torch.einsum("l,lbtd->btd", share, states[1:])
        counts = list(lengths)
        for at, stride in enumerate(self.config["strides"]):
            x = F.gelu(x) if at else x
            x = conv(x, counts, w, f"downsample.{at}.conv", stride)
            counts = [-(-count // stride) for count in counts]
            if at + 1 == len(self.config["strides"]):
                for block in range(self.config["residual_blocks"]):
                    inner = conv(norm(x, w, f"residual.{block}.norm"), counts, w, f"residual.{block}.conv", 1)
                    x = x + linear(F.gelu(inner), w, f"residual.{block}.linear")
            x = norm(x, w, f"downsample.{at}.norm")
        rows = []
        for row, (frames, length) in enumerate(zip(counts, lengths)):
            heard = x[row, :frames]
            scores = w["ctc.scale"] * unit(heard) @ self.unit_classes.T  # [P, 1+C]
            if self.config["positions"] == "ctc_posteriors":  # embeddings of the tokens, weighted
                heard = scores[:, 1:].softmax(-1) @ self.classes
            segments = [heard[start:end].mean(0) for start, end in runs(scores.argmax(-1).tolist())]
            clip = states[:, row, :length]  # [L+1, T, D]
            statistics = torch.stack([clip.mean(1), clip.std(1, correction=0)], 1)  # [L+1, 2, D]
            narrow = F.gelu(linear(F.layer_norm(statistics, statistics.shape[-1:], eps=EPS).flatten(), w, "summary.inner.linear"))
            summary = norm(linear(narrow, w, "summary.outer.linear"), w, "summary.norm")
            rows.append(torch.stack([summary, *segments]))
        return rows


def runs(path):
    """Where equal classes other than the blank (0) stand together."""
    found, start = [], 0
    for at in range(1, len(path) + 1):
        if at == len(path) or path[at] != path[start]:
            if path[start]:
                found.append((start, at))
            start = at
    return found


def unit(x):
    return x / (x.norm(dim=-1, keepdim=True) + 1e-6)


def norm(x, w, name):
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], EPS)


def linear(x, w, name):
    return F.linear(x, w[name + ".weight"], w[name + ".bias"])


def conv(x, counts, w, name, stride):
    mask = torch.arange(x.shape[1])[None] < torch.tensor(counts)[:, None]
    weight = w[name + ".weight"]
    return F.conv1d((x * mask[..., None]).transpose(1, 2), weight, w[name + ".bias"], stride, weight.shape[2] // 2).transpose(1, 2)
