#!/usr/bin/env python3
"""Writes made-up hidden states that are as unpleasant as real ones: heavy tails, a few channels of
10 to 30 times the others' size, channels that hang together.

usage: make_activations.py OUT.safetensors --hidden-size H [--layers 0 1] [--tokens 2048]
                           [--held-out HELD.safetensors] [--held-out-tokens 256] [--seed 1]

x = s * (noise + A f): channel sizes s are lognormal and the same for all tokens, noise is Student's
t with 4 degrees of freedom, 64 common factors f (of the same law) mix channels. The held-out tokens
are others of the same law. Needs numpy and safetensors.
"""
import argparse
import pathlib

import numpy as np
from safetensors.numpy import save_file

FACTORS = 64
FREEDOM = 4


def hidden_states(rng, layers, tokens, hidden_size):
    """{layer: [tokens, hidden_size] f32}, the layers independent of each other."""
    states = {}
    for layer in layers:
        size = np.exp(rng.standard_normal(hidden_size))
        mix = rng.standard_normal((FACTORS, hidden_size)) / np.sqrt(FACTORS)
        factors = 1.5 * rng.standard_t(FREEDOM, (tokens, FACTORS))
        noise = rng.standard_t(FREEDOM, (tokens, hidden_size))
        states[layer] = (size * (noise + factors @ mix)).astype(np.float32)
    return states


def write(path, states, rows):
    save_file({f"model.layers.{layer}.mlp.input": np.ascontiguousarray(x[rows]) for layer, x in states.items()}, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--hidden-size", type=int, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--held-out", type=pathlib.Path)
    parser.add_argument("--held-out-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    held_out = args.held_out_tokens if args.held_out else 0
    states = hidden_states(np.random.default_rng(args.seed), args.layers, args.tokens + held_out, args.hidden_size)
    write(args.out, states, slice(0, args.tokens))
    if args.held_out:
        write(args.held_out, states, slice(args.tokens, None))


if __name__ == "__main__":
    main()
