"""An engine for tests of Ray on several machines: a program that reads and writes lines of JSON.

The first line has the model and its settings; each later one has prompts, and how many tokens to generate of
each.
Answers are those tokens, or what was raised.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from dodona.oracle.errors import DodonaError
from dodona.runners.llm import LLM
from dodona.runners.sampling.params import SamplingParams


def main() -> None:
    model, settings = json.loads(sys.stdin.readline())
    try:
        with LLM(model, device="cpu", skip_tokenizer_init=True, **settings) as llm:
            places = llm._client.call(_places)
            say({"verdict": llm.verdict.runner, "processes": places})
            for line in sys.stdin:
                prompts, counts = json.loads(line)
                params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in counts]
                outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
                say({"tokens": [list(output.outputs[0].token_ids) for output in outputs]})
    except DodonaError as error:
        cause = error.__cause__
        say({"error": str(error), "rank": getattr(cause, "rank", None)})
    say({"ended": True})


def _places(runner: Any, _: Any) -> list[str]:
    return [worker.process for worker in runner._workers._processes]


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
