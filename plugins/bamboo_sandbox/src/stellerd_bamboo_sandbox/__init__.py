"""A stand-in for the Bamboo Card Portal API, for demos and tests: `with Sandbox(limits=False) as sandbox: …`."""

from stellerd_bamboo_sandbox.calllog import Call
from stellerd_bamboo_sandbox.faults import Fault
from stellerd_bamboo_sandbox.sandbox import Sandbox
from stellerd_bamboo_sandbox.settings import SandboxSettings

__all__ = ["Call", "Fault", "Sandbox", "SandboxSettings"]
