"""Generate text from Python.

    numllama train --data stand-in --out runs/first
    python examples/generate.py runs/first "The king"

On the command line: numllama generate runs/first --prompt "The king"
"""

import argparse

import numllama as nl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a training run, a Hugging Face folder, or another model with a tokenizer")
    parser.add_argument("text", nargs="?", default="The king", help="the text to continue; default: The king")
    args = parser.parse_args()
    text = args.text
    try:
        model, tokenizer = nl.load(args.model), nl.Tokenizer.load(args.model)
    except nl.NumllamaError as error:
        parser.error(str(error))
    room = model.config.max_seq_len

    # Text in, text out, up to a stop string. A window lets the text grow beyond the model's max_seq_len.
    print(text + nl.complete(model, tokenizer, text, 400, stop="\n\n", window=room, temperature=0.8, top_p=0.95, seed=0))

    # The same with tokens, one by one.
    sampling = nl.SamplingConfig(temperature=0.8, seed=1)
    for token in nl.stream(model, tokenizer.encode(text), 200, window=room, sampling=sampling):
        print(tokenizer.decode([token]), end="", flush=True)
    print()

    # Prompts of different lengths in one batch, three continuations of each, and their log-probabilities.
    prompts = [tokenizer.encode(text), tokenizer.encode("\n")]
    texts, logprobs = nl.generate_batch(model, prompts, 20, seed=2, n=3, logprobs=True)
    for prompt, continuations, chances in zip(prompts, texts, logprobs, strict=True):
        for ids, chance in zip(continuations, chances, strict=True):
            print(f"{sum(chance):8.2f} {tokenizer.decode(prompt + ids)!r}")


if __name__ == "__main__":
    main()
