"""The last part of every standalone file: reading the weights, generating, torch.export and the command line."""

from __future__ import annotations

IMPORTS = (
    "import argparse",
    "import json",
    "from collections.abc import Callable, Iterator",
    "from pathlib import Path",
    "import torch",
    "from torch import Tensor, nn",
    "from torch.nn import functional as F",
)

RUNTIME = '''\
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory: 8 bytes of header size, a JSON header, then the numbers as they are."""
    data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    start = 8 + int(data[:8].view(torch.int64))
    header = json.loads(bytes(data[8:start].tolist()))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = data[start + begin : start + end].view(DTYPES[entry["dtype"]]).view(entry["shape"])
    return tensors


def load(folder: Path = Path(__file__).parent, device: str = "cpu") -> Model:
    """The model with the weights of `folder`, for inference."""
    with torch.device("meta"):  # neither memory nor random numbers for weights that are replaced at once
        model = Model()
    model.load_state_dict(read_safetensors(folder / "model.safetensors"), assign=True)
    return model.eval().requires_grad_(False).to(device)


@torch.inference_mode()
def generate(model: Model, ids: list[int], tokens: int, temperature: float = 0.0, seed: int = 0) -> Iterator[int]:
    """Up to `tokens` tokens after `ids`: the likeliest at temperature 0, else drawn."""
    generator = torch.Generator().manual_seed(seed)
    new, cache = ids, None
    for _ in range(tokens):
        logits, cache = model(torch.tensor([new], device=model.embed.weight.device), cache)
        last = logits[0, -1].float().cpu()  # (B, T, V) → (V,)
        if temperature > 0:
            token = int(torch.multinomial((last / temperature).softmax(dim=-1), 1, generator=generator))
        else:
            token = int(last.argmax())
        yield token
        if token in END:
            return
        new = [token]


def export_pt2(model: Model, path: Path) -> None:
    """Write the prefill with torch.export: ids (B, T) of any batch and length up to POSITIONS → logits and cache."""
    # As read, all tensors lie in one mapped file; torch.export wants each in memory of its own.
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    shapes = {"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=POSITIONS)}}
    example = torch.zeros(2, 8, dtype=torch.int64, device=model.embed.weight.device)
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--prompt", default="Once upon a time", help="text to continue (with the tokenizers library)")
    parser.add_argument("--ids", help="token ids to continue instead, such as 1,2,3")
    parser.add_argument("--tokens", type=int, default=64, help="how many to generate at most")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="for temperatures above 0")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    parser.add_argument("--pt2", action="store_true", help="write model.pt2 with torch.export and stop")
    args = parser.parse_args()

    folder = Path(__file__).parent
    model = load(folder, args.device)
    sampling = (args.tokens, args.temperature, args.seed)
    if args.pt2:
        export_pt2(model, folder / "model.pt2")
    elif args.ids:
        print(*generate(model, [int(i) for i in args.ids.split(",")], *sampling), sep=",")
    else:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            parser.error("--prompt needs the tokenizers library (pip install tokenizers); or give --ids 1,2,3")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = tokenizer.encode(args.prompt).ids
        print(tokenizer.decode([*ids, *generate(model, ids, *sampling)]))


if __name__ == "__main__":
    main()
'''
