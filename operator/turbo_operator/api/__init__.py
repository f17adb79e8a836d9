"""The kinds of the API as typed, frozen records, and its fixed names; the CRDs are generated from here.

A field exists only once it works. Every public name of these modules is one of this package.
"""

# ruff: noqa: F403

from turbo_operator.api.accelerator import *
from turbo_operator.api.budget import *
from turbo_operator.api.condition import *
from turbo_operator.api.conditions import *
from turbo_operator.api.constants import *
from turbo_operator.api.deployment import *
from turbo_operator.api.draft import *
from turbo_operator.api.model import *
from turbo_operator.api.parsing import *
from turbo_operator.api.reference import *
from turbo_operator.api.requirements import *
from turbo_operator.api.scaling import *
from turbo_operator.api.speculation import *
from turbo_operator.api.status import *
from turbo_operator.api.template import *
from turbo_operator.api.traffic import *
from turbo_operator.api.validation import *
