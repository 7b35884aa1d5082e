"""A small, honest stand-in for Llama Stack 0.6.1: a scripted model and real tools, in-process."""

from llamaproxy.demo.model import MODEL
from llamaproxy.demo.stack import DemoStack
from llamaproxy.demo.tools import GROUP

__all__ = ["GROUP", "MODEL", "DemoStack"]
