"""An ONNX Runtime with GPUs for machines without: it answers as the real one does and computes with the reference.

FAKE_ORT says what goes wrong: `absent` (no provider for GPUs), `fallback` (it cannot be loaded), `stray` (products stay
on the processor), `few` (most nodes do), `broken` (TensorRT's libraries are gone), `full` (no memory on the GPU), `old`
(it does not say where nodes run). As much of its interface as Portolan calls.
"""

from __future__ import annotations

import os
import threading
from collections import namedtuple
from enum import Enum
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

Node = namedtuple("Node", "name op_type domain")
GraphOptimizationLevel = Enum(
    "GraphOptimizationLevel", "ORT_DISABLE_ALL ORT_ENABLE_BASIC ORT_ENABLE_EXTENDED ORT_ENABLE_ALL"
)
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


def wrong(what):
    return os.environ.get("FAKE_ORT") == what


def get_available_providers():
    return [CPU] if wrong("absent") else [TENSORRT, CUDA, CPU]


def preload_dlls():
    print("what it prints must not get into anybody's answer")


class SessionOptions:
    def __init__(self):
        self.entries = {}

    def add_session_config_entry(self, key, value):
        self.entries[key] = value


class Group:
    def __init__(self, provider, node):
        self.ep_name, self.node = provider, node

    def get_nodes(self):
        return [self.node]


class Binding:
    def __init__(self):
        self.inputs, self.outputs, self.results, self.waited = {}, [], None, False

    def bind_cpu_input(self, name, array):
        assert isinstance(array, np.ndarray), "only arrays can be bound"
        assert array.flags.c_contiguous, "only contiguous arrays can be bound"
        self.inputs[name] = array

    def bind_output(self, name, device_type, device_id):
        assert (device_type, device_id) == ("cuda", 0)
        self.outputs.append(name)

    def synchronize_outputs(self):
        self.waited = True

    def copy_outputs_to_cpu(self):
        assert self.waited, "the GPU may not be done"
        return self.results


class InferenceSession:
    def __init__(self, path, settings, providers, enable_fallback):
        assert enable_fallback == 0, "another try on the processor would be silent"
        if wrong("broken"):
            raise RuntimeError("Please install TensorRT libraries as mentioned in the GPU requirements page")
        if wrong("full"):
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1073741824")
        model = onnx.load(path)
        for node in model.graph.node:
            if node.op_type == "Mystery":
                raise RuntimeError("Fatal error: com.example:Mystery(-1) is not a registered function/op")
        self.model, self.settings, self.evaluator = model, settings, ReferenceEvaluator(model)
        self.providers = [CPU] if wrong("fallback") else [name for name, _ in providers] + [CPU]
        self.lock = threading.Lock()
        name, options = providers[0]
        if name == TENSORRT:
            self.engine(Path(path), options)

    def engine(self, path, options):
        """As the real cache: the name knows the file's name and those of nodes, and no weights."""
        assert options["trt_engine_cache_enable"] == "1"
        outputs = "-".join(o for node in self.model.graph.node for o in node.output)
        place = Path(options["trt_engine_cache_path"]) / f"{path.stem}-{outputs}_sm90.engine"
        if not place.exists():
            place.write_text(f"f16={options['trt_fp16_enable']} tf32={os.environ.get('NVIDIA_TF32_OVERRIDE', '1')}")

    def get_providers(self):
        return self.providers

    def __getattribute__(self, name):
        if name == "get_provider_graph_assignment_info" and wrong("old"):
            raise AttributeError(name)
        return super().__getattribute__(name)

    def get_provider_graph_assignment_info(self):
        assert self.settings.entries["session.record_ep_graph_assignment_info"] == "1"
        found = []
        for number, node in enumerate(self.model.graph.node):
            away = (wrong("stray") and node.op_type in ("Gemm", "Conv")) or (wrong("few") and number > 0)
            away = away and not (wrong("few") and node.op_type == "Gemm")
            provider = CPU if away else self.providers[0]
            found.append(Group(provider, Node(node.name, node.op_type, node.domain)))
        return found

    def io_binding(self):
        return Binding()

    def run_with_iobinding(self, binding):
        feeds = {name: value.copy() for name, value in binding.inputs.items()}
        with self.lock:  # the evaluator lets one in at a time, the real one any number
            binding.results = [np.array(value) for value in self.evaluator.run(binding.outputs, feeds)]
