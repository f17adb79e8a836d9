"""The kind TurboDeployment: what a user writes."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from turbo_operator.api.constants import (
    API_VERSION,
    MAX_NAME_LENGTH,
    TURBODEPLOYMENT,
    EngineName,
    Placement,
    Routing,
)
from turbo_operator.api.model import CACHE_VARIABLES, Adapter, Cache, Model
from turbo_operator.api.requirements import Accelerators, Cost, Parallelism, PlanPolicy, Targets, Workload
from turbo_operator.api.scaling import Rollout, Scaling, ScalingMode
from turbo_operator.api.speculation import Capture, Method, Speculation
from turbo_operator.api.status import TurboDeploymentStatus
from turbo_operator.api.template import PodTemplate
from turbo_operator.api.traffic import Gateway, Server
from turbo_operator.api.validation import (
    KEYED_BY_NAME,
    ASecondToAnHour,
    Duration,
    Metadata,
    Record,
    Rule,
    Text,
    UpToAnHour,
)

_IMAGE = "write an image, like registry.example/turbo-runtime:1.2.3"
_Image = Annotated[str, Text(512, r"[a-zA-Z0-9][-a-zA-Z0-9._:/@]*", _IMAGE)]
_SERVICE_NAME = "[a-z]([-a-z0-9]*[a-z0-9])?"


# What the operator writes itself, and what would hide a server from it; prefixes, since vLLM takes those too.
_PLANNED = (
    "api-k api-server conf data-p device-m disable-log-s gpu-m grpc headless ho kv-cache-mem master max-m "
    "max-num middleware nnodes node pipeline-p served-m shutdown spec ssl tensor-p uds"
)
_PLANNED_PREFIX = "|".join(_PLANNED.replace("-", "[-_]").split())
_EngineArgument = Annotated[
    str,
    Text(1024),
    Rule(
        r"!self.matches(r'(?s)^(-tp|-pp|-dp|-sc|-n|-r|--(model|dtype|port|revision))([=.].*)?$')"
        rf" && !self.matches(r'^--({_PLANNED_PREFIX})')",
        "leave out what the plan sets, like --model, --port and --tensor-parallel-size: spec.model, "
        "spec.parallelism and spec.speculation say it",
    ),
    Rule(
        r"!self.matches(r'^-[^={]*\s')",
        "write a flag and its value as two arguments, or as one with '='",
    ),
]


_LORA_FLAG = re.compile(r"--(enable[-_]lora|lora|max[-_](cpu[-_])?lora)")


class Engine(Record):
    """The engine that serves the model."""

    type: Literal["Auto", "Turbo", "VLLM"] = "Auto"
    """Auto leaves it to the planner: Turbo on cores, VLLM on other accelerators."""
    image: _Image | None = None
    """Image of the engine, with type Auto of Turbo. Default: the one that the operator was installed with."""
    args: Annotated[list[_EngineArgument] | None, Field(max_length=64)] = None
    """Further arguments of vLLM's server, like --quantization=fp8."""
    step_timeout: ASecondToAnHour | None = None
    """Longest time that a step of Turbo may take before the engine counts as hung and its pod is restarted.
    Default: 60s. Raise it if one step of 512 tokens can take that long, as with a large model on few cores.
    """

    rules = (
        Rule(
            "!has(self.args) || self.type == 'VLLM'",
            "write type: VLLM too, or leave args out: they are of vLLM's server",
            "args",
        ),
    )


class Drain(Record):
    """How a pod leaves."""

    timeout: UpToAnHour = Duration("120s")
    """Longest wait for running requests before a pod goes, at most 1h."""


def _has_load(spec: str) -> str:
    """Return the condition that a spec names a load, so that the planner decides on the replicas."""
    return (
        f"has({spec}.workload)"
        f" && (has({spec}.workload.requestsPerSecond) || has({spec}.workload.concurrency))"
        f" || has({spec}.targets) && has({spec}.targets.tokensPerSecond)"
    )


# Whose drafts are trained for vLLM, unless it names Turbo.
_HAS_EAGLE3 = (
    "self.speculation.method == 'EAGLE3'"
    " && (has(self.speculation.draftRef) || has(self.speculation.training))"
)
_HAS_ADAPTERS = "has(self.adapters) && self.adapters.size() > 0"
_ON_VLLM = f"(self.engine.type == 'VLLM' || self.engine.type != 'Turbo' && {_HAS_EAGLE3})"
_EXTERNAL = f"has(self.scaling.mode) ? self.scaling.mode == 'External' : !({_has_load('self')})"


class TurboDeploymentSpec(Record):
    """What is wanted: a model; everything else is defaulted, planned, or refused with a reason."""

    model: Model
    """The model that is served."""
    adapters: Annotated[tuple[Adapter, ...] | None, Field(max_length=8), KEYED_BY_NAME] = None
    """LoRA adapters of the model, each served under its name beside it. Default: none."""
    engine: Engine = Field(default_factory=Engine)
    """The engine that serves it."""
    speculation: Speculation = Field(default_factory=Speculation)
    """Speculative decoding."""
    accelerators: Accelerators | None = None
    """The hardware that may be used. Default: every TurboAccelerator."""
    parallelism: Parallelism | None = None
    """How one replica is divided over accelerators. Default: planned."""
    workload: Workload | None = None
    """The load that is expected."""
    targets: Targets | None = None
    """What a plan must reach."""
    cost: Cost | None = None
    """What it may cost."""
    replicas: Annotated[int, Field(strict=True, ge=0, le=1000)] = 1
    """Number of replicas while scaling.mode is External; kubectl scale or an autoscaler may own it through
    the scale subresource."""
    scaling: Scaling = Field(default_factory=Scaling)
    """How many replicas there are."""
    plan_policy: PlanPolicy = Field(default_factory=PlanPolicy)
    """Which plan is best, and when one that runs gives way to another."""
    routing: Routing = Routing.SERVICE
    """How requests reach the pods. Service: Kubernetes picks one of them at random. Router: vLLM's router
    stands in front of them, and sends prompts that begin alike to the same pod. Gateway: an inference gateway
    of the cluster finds them by an InferencePool; the Service stays."""
    gateway: Gateway | None = None
    """With routing Gateway: how the gateway finds its way. Default: by the endpoint picker NAME-epp."""
    server: Server | None = None
    """The server of the OpenAI API in every pod."""
    cache: Cache | None = None
    """Where a model of the hub or in a bucket lies before a pod serves it. Default: engines download it from
    the hub as they start."""
    capture: Capture | None = None
    """Prompts of this deployment's own traffic, kept for drafts to learn from. Default: none are."""
    rollout: Rollout = Field(default_factory=Rollout)
    """How changes come to the pods."""
    drain: Drain = Field(default_factory=Drain)
    """How a pod leaves."""
    suspend: Annotated[bool, Field(strict=True)] = False
    """True removes all pods, one that trains too, and keeps the object, its Service and its plan."""
    pod_template: PodTemplate = Field(default_factory=PodTemplate)
    """A small overlay on the serving pods."""

    rules = (
        Rule(
            "self.engine.type != 'VLLM' || self.speculation.method != 'TurboHeads'",
            "choose another method, or engine.type Turbo: only Turbo has TurboHeads",
            "speculation.method",
        ),
        Rule(
            "!self.model.uri.matches('[.]gguf/?$')"
            f" || self.engine.type != 'VLLM' && !({_HAS_ADAPTERS}) && !has(self.speculation.draftModel)"
            " && !(self.speculation.method in ['NGram', 'EAGLE3', 'DraftModel', 'MTP'])",
            "name a folder of safetensors, or leave out engine.type VLLM, adapters, draftModel and methods "
            "NGram, EAGLE3, DraftModel and MTP: they go with no GGUF file",
            "model.uri",
        ),
        Rule(
            "!has(self.cache) || self.model.uri.matches('^(hf|s3)://')",
            "leave cache out: only a model of the hub (hf://) or in a bucket (s3://) is fetched",
            "cache",
        ),
        Rule(
            "!self.model.uri.startsWith('s3://') || has(self.cache)",
            "write cache.persistentVolumeClaim or cache.emptyDir: engines read no bucket, so a model in one "
            "(s3://) is fetched before they start",
            "cache",
        ),
        Rule(
            "!has(self.cache) || !has(self.podTemplate.spec.env)"
            f" || !self.podTemplate.spec.env.exists(it, it.name in {list(CACHE_VARIABLES)})",
            f"leave {', '.join(CACHE_VARIABLES)} out, or cache: spec.cache says where the model lies",
            "podTemplate.spec.env",
            holds=lambda it: (
                not (
                    it.cache and any(each.name in CACHE_VARIABLES for each in it.pod_template.spec.env or ())
                )
            ),
        ),
        Rule(
            f"!{_ON_VLLM} || !has(self.speculation.training)"
            " || self.speculation.training.prompts.type != 'Captured'",
            "write ConfigMap or PersistentVolumeClaim: vLLM keeps no prompts",
            "speculation.training.prompts.type",
        ),
        Rule(
            f"!{_ON_VLLM} || !has(self.capture)",
            "leave capture out, or choose engine.type Turbo: only Turbo keeps prompts",
            "capture",
        ),
        Rule(
            f"!{_ON_VLLM} || !has(self.speculation.namedDrafts)",
            "leave namedDrafts out, or choose engine.type Turbo: vLLM loads one draft, as it starts",
            "speculation.namedDrafts",
        ),
        Rule(
            f"!{_ON_VLLM} || !has(self.speculation.training) || self.speculation.mode != 'Required'",
            "write mode: Auto: on VLLM, pods answer without drafts until the first one is trained",
            "speculation.mode",
        ),
        Rule(
            f"self.engine.type != 'Auto' || !has(self.engine.image) || !({_HAS_EAGLE3})",
            "write engine.type too, VLLM or Turbo: both draft so, and each has an image of its own",
            "engine.image",
        ),
        Rule(
            f"!({_HAS_ADAPTERS}) || !has(self.engine.args)"
            r" || !self.engine.args.exists(it, it.matches('^--(enable[-_]lora|lora|max[-_](cpu[-_])?lora)'))",
            "leave LoRA flags out of engine.args, or adapters: spec.adapters writes them",
            "engine.args",
            holds=lambda it: not (it.adapters and any(map(_LORA_FLAG.match, it.engine.args or ()))),
        ),
        Rule(
            "self.engine.type != 'Turbo' || !(self.speculation.method in ['NGram', 'MTP'])",
            "choose another method, or engine.type VLLM: Turbo has no NGram and MTP",
            "speculation.method",
        ),
        Rule(
            "self.engine.type != 'VLLM' || self.speculation.placement in ['Auto', 'Colocated']",
            "leave placement out, or choose engine.type Turbo: vLLM keeps a draft with the model",
            "speculation.placement",
        ),
        Rule(
            "self.engine.type != 'Turbo' || !has(self.parallelism) || (!has(self.parallelism.data)"
            " || self.parallelism.data < 2) && (!has(self.parallelism.expert) || !self.parallelism.expert)",
            "leave data and expert out, or choose engine.type VLLM: Turbo has neither",
            "parallelism",
        ),
        Rule(
            "!has(self.speculation.training) || self.speculation.training.prompts.type != 'Captured'"
            f" || has(self.capture) || {_ON_VLLM}",
            "write spec.capture, which keeps the prompts, or take those of a ConfigMap or a claim",
            "speculation.training.prompts.type",
        ),
        Rule(
            "self.planPolicy.objective == 'Cost' || has(self.cost) && has(self.cost.maxPerHour)"
            " || has(self.accelerators) && has(self.accelerators.maxTotal)",
            "write cost.maxPerHour or accelerators.maxTotal: without a bound the best plan has no end",
            "planPolicy.objective",
        ),
        Rule(
            f"!has(self.scaling.minReplicas) || self.scaling.minReplicas > 0 || !({_EXTERNAL})",
            "write scaling.mode: Metrics, or minReplicas of 1 or more: with External, spec.replicas says how "
            "many there are, 0 included",
            "scaling.minReplicas",
            holds=lambda it: it.scaling.min_replicas != 0 or it.scaling_mode != ScalingMode.EXTERNAL,
        ),
        Rule(
            "!has(self.scaling.minReplicas) || self.scaling.minReplicas > 0 || self.routing == 'Router'",
            "write routing: Router, which takes requests while there is no replica, or minReplicas: 1",
            "scaling.minReplicas",
        ),
        Rule(
            "self.planPolicy.apply != 'Recommend' || !has(self.cache) && !has(self.capture)"
            " && !has(self.speculation.training)",
            "leave cache, capture and speculation.training out: Recommend makes no pod",
            "planPolicy.apply",
        ),
        Rule(
            "self.planPolicy.apply != 'Recommend' || oldSelf.planPolicy.apply == 'Recommend'",
            "write apply: Recommend in another TurboDeployment: this one has pods of its own",
            "planPolicy.apply",
            holds=lambda _: True,
        ),
        Rule(
            "!has(self.gateway) || self.routing == 'Gateway'",
            "leave gateway out, or write routing: Gateway",
            "gateway",
        ),
        Rule(
            f"has(self.scaling.mode) || has(oldSelf.scaling.mode) || {_has_load('oldSelf')}"
            f" || !({_has_load('self')}) || oldSelf.planPolicy.apply == 'Recommend'",
            "write scaling.mode too: with Planned the load decides on the replicas, with External kubectl "
            "scale and other autoscalers keep them",
            "scaling.mode",
            holds=lambda _: True,
        ),
    )

    @property
    def engines(self) -> tuple[EngineName, ...]:
        """The engines that may serve it: without a named one, those that support what it requests."""
        if self.engine.type != "Auto":
            return (EngineName(self.engine.type),)
        drafts = self.speculation
        if drafts.method == Method.EAGLE3 and (drafts.draft_ref or drafts.training):
            return (EngineName.VLLM,)
        of_turbo = (self.capture, drafts.training, drafts.draft_ref, drafts.named_drafts, self.engine.image)
        is_of_turbo = any(of_turbo) or drafts.method in (Method.TURBO_HEADS, Method.SUFFIX)
        is_of_turbo = is_of_turbo or drafts.placement in (Placement.SEPARATE, Placement.CPU)
        is_of_turbo = is_of_turbo or self.model.uri.rstrip("/").endswith(".gguf")
        return (EngineName.TURBO,) if is_of_turbo else tuple(EngineName)

    @property
    def is_on_vllm(self) -> bool:
        """Whether vLLM alone may serve it, which loads a draft as it starts."""
        return self.engines == (EngineName.VLLM,)

    @property
    def draft_method(self) -> Method:
        """How drafts that are trained for it draft: EAGLE3 on VLLM, and on engine Turbo what is asked for."""
        is_eagle3 = self.is_on_vllm or self.speculation.method == Method.EAGLE3
        return Method.EAGLE3 if is_eagle3 else Method.TURBO_HEADS

    @property
    def awaits_eagle3(self) -> bool:
        """Whether pods of engine Turbo take up an EAGLE-3 draft as they run."""
        is_eagle3 = self.draft_method == Method.EAGLE3 and not self.is_on_vllm
        return is_eagle3 and self.speculation.has_trained

    @property
    def scaling_mode(self) -> ScalingMode:
        """Who decides on the number of replicas, the default worked out."""
        if self.scaling.mode is not None:
            return self.scaling.mode
        return ScalingMode.PLANNED if self.has_load else ScalingMode.EXTERNAL

    @property
    def has_load(self) -> bool:
        """Whether it names a load to plan for."""
        workload, targets = self.workload or Workload(), self.targets or Targets()
        loads = (workload.requests_per_second, workload.concurrency, targets.tokens_per_second)
        return loads != (None, None, None)


# What the planner weighs and nothing runs yet.
_NOT_YET_SUPPORTED = (
    Rule(
        "self.spec.engine.type != 'Turbo' || !has(self.spec.parallelism)"
        " || !has(self.spec.parallelism.pipeline) || self.spec.parallelism.pipeline < 2",
        "leave parallelism.pipeline out, or write engine.type: VLLM: engine Turbo runs a replica on one node",
        "spec.parallelism.pipeline",
    ),
)


class TurboDeployment(Record):
    """A language model served with lossless speculative decoding, behind an OpenAI-compatible Service."""

    api_version: Literal["serving.turbo.dev/v1alpha1"] = API_VERSION
    kind: Literal["TurboDeployment"] = TURBODEPLOYMENT
    metadata: Metadata
    spec: TurboDeploymentSpec
    """What is wanted."""
    status: TurboDeploymentStatus = Field(default_factory=TurboDeploymentStatus)
    """What there is; written by the operator."""

    rules = (
        Rule(
            f"self.metadata.name.size() <= {MAX_NAME_LENGTH}"
            f" && self.metadata.name.matches(r'^{_SERVICE_NAME}$')",
            f"choose a metadata.name of at most {MAX_NAME_LENGTH} characters: a lower-case letter, then "
            "lower-case letters, digits and '-', since a Service of that name is made",
        ),
        Rule(
            "!has(self.spec.adapters) || !self.spec.adapters.exists(it, it.name =="
            " (has(self.spec.model.name) ? self.spec.model.name : self.metadata.name))",
            "choose another name for the adapter: the model has this one in the OpenAI API",
            "spec.adapters",
            holds=lambda it: it.served_name not in {adapter.name for adapter in it.spec.adapters or ()},
        ),
        *_NOT_YET_SUPPORTED,
    )

    @property
    def served_name(self) -> str:
        """Name of the model in the OpenAI API."""
        return self.spec.model.name or self.metadata.name
