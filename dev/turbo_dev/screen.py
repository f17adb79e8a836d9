"""What the demo shows, as text."""

from __future__ import annotations

import textwrap
from typing import Any

from . import binaries
from .access import Access
from .paths import REPOSITORY
from .release import DEPLOYMENT
from .scaling import Outcome
from .shell import run
from .talk import Pair

WIDTH = 100
LARGE = REPOSITORY / "examples" / "r1-distill-qwen-32b.yaml"
NOTE = (
    "The speedup is what the text allows: the suffix drafter guesses what stands in the question or in "
    "recent answers, and little of free prose. The bytes never depend on it."
)

WINDOW = "The example lets a replica go after 20 s in which one was enough; left out, that is five minutes."


def answers(access: Access, pairs: list[Pair]) -> str:
    """What runs, why, and what it answered."""
    deployment = access.get("td", DEPLOYMENT)
    parts = [
        _rule("kubectl get td"),
        access.kubectl("get", "td", DEPLOYMENT).rstrip(),
        _rule("the plan, and why (its times are predicted; those measured follow)"),
        *_plan(access, deployment["status"].get("plan", {})),
    ]
    for pair in pairs:
        parts += _pair(pair)
    return "\n".join([*parts, "", _wrapped(NOTE)])


def scaled(outcome: Outcome) -> str:
    """How the replicas went, and the requests meanwhile."""
    way = " -> ".join(map(str, outcome.replicas))
    lines = [
        _rule("scaled by its load"),
        f"replicas {way}; {outcome.answered} requests answered, {outcome.failed} failed",
        _wrapped(WINDOW),
    ]
    if outcome.failed:
        lines.append(_wrapped(f"the last that failed: {outcome.error}"))
    return "\n".join(lines)


def large() -> str:
    """What would be chosen for a model that no laptop holds: `turbo plan`, which needs no cluster."""
    example = LARGE.relative_to(REPOSITORY)
    table = run([REPOSITORY / ".venv" / "bin" / "turbo", "plan", "-f", example], cwd=REPOSITORY)
    return "\n".join([_rule(f"turbo plan -f {example}"), table.rstrip()])


def next_steps(access: Access, base_url: str | None, down: str) -> str:
    """`base_url` is the Service's address where this machine reaches it, `down` what removes it all."""
    return "\n".join([_rule("try next"), *_commands(access, base_url, down)])


def all_equal(pairs: list[Pair]) -> bool:
    """Speculation has changed no byte of any answer."""
    return all(pair.equal for pair in pairs)


def _plan(access: Access, plan: dict[str, Any]) -> list[str]:
    accelerator = plan.get("accelerator", "none")
    shape = f"{plan.get('replicas')} x {plan.get('acceleratorsPerReplica')} {accelerator}"
    drafts = f"drafts {plan.get('method')} up to {plan.get('maxDraftTokens')} tokens"
    lines = [
        f"{shape}, engine {plan.get('engine')}, {drafts}",
        _wrapped(f"{plan.get('reason')}: {plan.get('message')}"),
    ]
    lines += [
        _wrapped(
            f"not {other['accelerator']} x {other['tensor']}, {other['method']}: {other['reason']}: "
            f"{other['message']}"
        )
        for other in plan.get("rejected", [])
    ]
    cost = plan.get("predicted", {}).get("costPerHour")
    if cost is not None:
        pricing = access.get("turboaccelerator", accelerator)["spec"]["pricing"]
        each = pricing["perAcceleratorHour"]["onDemand"]
        lines.append(f"{cost} $/h: {each} $/h for one {accelerator} is a price set by you")
        if pricing.get("source"):
            lines[-1] += f" ({pricing['source']})"
    return lines


def _pair(pair: Pair) -> list[str]:
    length = "no drafts" if pair.on.acceptance_length is None else f"{pair.on.acceptance_length:.2f}"
    same = "the same bytes" if pair.equal else "THE BYTES DIFFER"
    lines = [_rule(pair.question.title), f"> {_wrapped(pair.question.text)}", _wrapped(pair.on.text)]
    if not pair.equal:
        lines += ["--- without speculation:", _wrapped(pair.off.text)]
    times = f"with speculation {pair.on.seconds:.2f} s, without {pair.off.seconds:.2f} s"
    pace = 1000 * pair.on.seconds / max(1, pair.on.tokens)
    drafts = f"acceptance length {length} ({pair.on.tokens} tokens, {pace:.0f} ms each)"
    return [*lines, f"{times}: {same}, {pair.speed_up:.2f} times as fast; {drafts}"]


def _commands(access: Access, base_url: str | None, down: str) -> list[str]:
    tools = [binaries.ensure((name,))[name].parent for name in ("kubectl", "helm")]
    path = ":".join(map(str, [*tools, REPOSITORY / ".venv" / "bin", "$PATH"]))
    message = '{"role": "user", "content": "What is the capital of France?"}'
    body = f'{{"model": "{DEPLOYMENT}", "temperature": 0, "max_tokens": 40, "messages": [{message}]}}'
    if base_url is None:
        talk = f"kubectl port-forward service/{DEPLOYMENT} 8000:80   # then any OpenAI client at http://127.0.0.1:8000/v1"
    else:
        talk = f"curl -s {base_url}/chat/completions -H 'content-type: application/json' -d '{body}'"
    return [
        f"export KUBECONFIG={access.kubeconfig} PATH={path}",
        f"  1. kubectl describe td {DEPLOYMENT}",
        f"  2. {talk}",
        f"  3. {down}",
    ]


def _rule(title: str) -> str:
    return f"\n== {title} ".ljust(WIDTH, "=")


def _wrapped(text: str) -> str:
    lines = [textwrap.fill(line, WIDTH) for line in text.splitlines()]
    return "\n".join(lines)
