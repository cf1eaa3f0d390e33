"""A language model: a tiny GPT-2, no head of ours, a loss per token, LoRA by PEFT.

Two synthetic languages of 24 words: each word is followed by one of three others,
which differ between the languages. The network was trained on a mixture of other such
languages, as a language model is before anybody tunes it.
"""

import copy
import math
from functools import partial

import minicl
import peft
import torch
import torch.nn.functional as F
import transformers

WORDS, LENGTH = 24, 20


def language(seed, n):
    """Sentences, int64 of shape (n, LENGTH + 1), of a language of its own."""
    draw = torch.Generator().manual_seed(seed)
    follows = (
        torch.rand(WORDS, WORDS, generator=draw).topk(3).indices
    )  # (words, 3): what may follow each word
    sentence = [torch.randint(WORDS, (n,), generator=draw)]
    for _ in range(LENGTH):
        choice = torch.randint(3, (n,), generator=draw)
        sentence.append(follows[sentence[-1], choice])
    return torch.stack(sentence, 1)


def part(sentences):
    """Inputs and targets: every word, and the one after it."""
    return sentences[:, :-1], sentences[:, 1:]


def per_token(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def score(logits, targets):
    return -per_token(logits, targets)  # higher is better; perplexity is exp(-score)


def tasks(scenario):
    found = []
    for t, seed in enumerate((1, 2)):
        sentences = language(seed, 500)
        train, test = part(sentences[:400]), part(sentences[400:])
        found.append(
            minicl.Task(
                t,
                None,
                train,
                test=test,
                scenario=scenario,
                name=f"language {t}",
                criterion=per_token,
                metric=score,
            )
        )
    return found


def trained_before():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    network = transformers.GPT2LMHeadModel(config)
    x, y = part(torch.cat([language(seed, 100) for seed in range(10, 20)]))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    for _ in range(3):
        for rows in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            per_token(network(x[rows]).logits, y[rows]).backward()
            optimizer.step()
    return network


pretrained = trained_before()


def whole():
    return copy.deepcopy(pretrained)


def lora():
    settings = peft.LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=["c_attn", "c_fc", "c_proj"],
        fan_in_fan_out=True,
    )
    return peft.get_peft_model(whole(), settings)


def logits(out):
    """Of the dictionary that the network returns, what is the answer."""
    return out.logits


named = ["*lora_*"]
learners = {
    "fine-tuning, LoRA": minicl.FineTune(lora(), features=logits),
    "EWC on LoRA": minicl.EWC(lora(), lam=3e3, parameters=named, features=logits),
    "ER, LoRA": minicl.ER(lora(), budget=100, features=logits),
    "PackNet, all weights": minicl.PackNet(whole(), features=logits),
}
print("perplexity            language 0  after language 1  language 1")
for name, learner in learners.items():
    packs = isinstance(learner, minicl.PackNet)
    stream = tasks("task" if packs else "domain")
    adam = partial(torch.optim.Adam, lr=0.003 if packs else 0.01)
    run = partial(minicl.run, epochs=15, batch_size=50, progress=False)
    R = run(learner, stream, optimizer=adam).accuracy
    first, kept, second = (math.exp(-s) for s in (R[0, 0], R[1, 0], R[1, 1]))
    print(f"{name:21} {first:10.2f} {kept:17.2f} {second:11.2f}")
    assert not packs or minicl.certify(learner, stream)
