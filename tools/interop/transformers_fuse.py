"""Transformers loads what `gantry fuse` and `gantry unfuse` write and computes the same logits.

usage: transformers_fuse.py GANTRY GOLDEN_ROOT
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
try:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM
except ImportError as error:
    print(f"needs torch and transformers: {error}")
    sys.exit(77)
if int(transformers.__version__.split(".")[0]) < 5:
    print(f"needs transformers 5, found {transformers.__version__}")
    sys.exit(77)

# Families of which Transformers itself reads stacked experts only. What `unfuse` writes of them is for
# other engines; here it is fused again, which must give what Transformers had.
STACKED_ONLY = {
    "aria_text", "dbrx", "gemma4_text", "gpt_oss", "granitemoe", "granitemoeshared", "llama4", "minimax_m3_vl_text"
}  # fmt: skip

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
GANTRY, GOLDEN = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])


def logits(directory):
    """Logits of fixed tokens, and what loading found missing or left over."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    model.eval()
    generator = torch.Generator().manual_seed(7)
    vocab = model.config.get_text_config().vocab_size
    tokens = torch.randint(0, vocab, (1, 12), generator=generator)
    with torch.no_grad():
        out = model(tokens).logits
    problems = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(key)}
    return out, problems


def convert(command, source, target):
    subprocess.run([GANTRY, command, source, target, "-q", "--no-progress"], check=True, capture_output=True)


def main():
    checked, unreadable, failures = 0, [], []
    for directory in sorted((GOLDEN / "families").iterdir()):
        try:
            expected, problems = logits(directory)
        except (ValueError, ImportError, KeyError, OSError) as error:
            unreadable.append(f"{directory.name}: {type(error).__name__}: {str(error)[:80]}")
            continue
        with tempfile.TemporaryDirectory() as temp:
            for command in ("unfuse", "fuse"):
                out = pathlib.Path(temp) / command
                convert(command, directory, out)
                if command == "unfuse" and directory.name.split("-")[0] in STACKED_ONLY:
                    unfused, out = out, pathlib.Path(temp) / "again"
                    convert("fuse", unfused, out)
                try:
                    found, more = logits(out)
                except Exception as error:  # whatever Transformers raises is a finding here
                    failures.append(f"{directory.name} {command}: {type(error).__name__}: {str(error)[:200]}")
                    continue
                if not torch.equal(found, expected) or more != problems:
                    difference = (found - expected).abs().max().item()
                    failures.append(f"{directory.name} {command}: logits differ by {difference}; {json.dumps(more)[:300]}")
                else:
                    checked += 1
    for line in unreadable:
        print(f"not readable by Transformers as it is: {line}")
    for line in failures:
        print(f"FAILED {line}")
    print(f"transformers {transformers.__version__}: {checked} outputs give bit-equal logits, {len(failures)} do not")
    return 1 if failures or checked == 0 else 0


sys.exit(main())
