"""What a model takes up in memory, known before it is loaded."""

from collections.abc import Iterator, Mapping

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.graph import Graph
from dragoman_server.bundle.graph_rules import weight_tensors
from dragoman_server.bundle.manifest import ATTENTION_FILE, CUDA_PRECISIONS, DECODER_STEP_FILE, VOCABULARY_FILE
from dragoman_server.config import EngineOptions
from dragoman_server.runtime.output_weights import INT8_EMBEDDINGS
from dragoman_server.runtime.packed_products import has_int8_product
from dragoman_server.runtime.runner import session_threads
from dragoman_server.runtime.session import sums_int8_exactly
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES, TokenizerKind

# The input of these, by its place, that each session copies: to pack it, or as it is folded into a constant.
_INT8_PRODUCT = "com.microsoft.MatMulIntegerToFloat"
_COPIED_INPUTS = {"Gemm": 1, "MatMul": 1, _INT8_PRODUCT: 1, "Cast": 0}
_PRODUCTS = ("Gemm", _INT8_PRODUCT)
# Measured: graphs, kernels and Python's objects; and of the files of a tokenizer, what becomes of a byte. Of the first
# large vocabulary of a process, Python keeps a part of what parsing it took: of 256,000 pieces 17 of 110 MiB.
_FIXED_BYTES = 4 << 20
_LIST_SESSIONS_BYTES = 2 << 20  # measured, likewise: a step in parts has sessions of its own
_TOKENIZER_FACTORS: Mapping[TokenizerKind, int] = {
    "sentencepiece": 8,
    "marian": 9,
    "pieces": 10,
    "pieces_pair": 10,
    "byte_bpe": 13,
    "bytes": 0,  # has no files
}


def model_bytes(bundle: Bundle, graphs: Mapping[str, Graph], options: EngineOptions, num_gpus: int = 0) -> int:
    """About what a model will take up when it is loaded, in bytes, to 15 % for models of tens of megabytes and more.

    Without what grows as it is used, which are the keys and values of its lanes and the weights of the lists that
    targets are chosen from, and without what all models share. A model that is decoded on GPUs has the weights of the
    encoder and those of the decoder on each of them, and in the memory of the host its tokenizer and the weights of the
    attention graph. Both count.

    Args:
        bundle: of the model.
        graphs: of the bundle, by file name.
        options: of the engine.
        num_gpus: that it is decoded on; 0: on the CPU.

    Raises:
        OSError: the bundle has no tokenizer, or not the lists that its manifest has.
    """
    tensors = weight_tensors(graphs)
    is_for_cuda = bundle.manifest.precision in CUDA_PRECISIONS
    threads = session_threads(sum(tensor.size for tensor in tensors.values()), options)
    num_pairs = 1 if is_for_cuda else len(threads)
    # A CPU computes with float32 what it is given in 16 bits.
    growth = 2 if is_for_cuda else 1
    # What `with_packed_products` packs, all sessions share.
    copied_inputs = {k: v for k, v in _COPIED_INPUTS.items() if not (k == _INT8_PRODUCT and has_int8_product())}
    shared, copied, on_gpu = set[str](), 0, 0
    for file, graph in graphs.items():
        if num_gpus and file != ATTENTION_FILE:
            on_gpu += sum(tensors[name].size for name in graph.tensors if _is_weight(graph, name))
            continue
        num_sessions = 1 if file == ATTENTION_FILE else num_pairs
        copied += growth * num_sessions * sum(tensors[name].size for name in set(_copied(graph, copied_inputs)))
        shared.update(_shared(graph, copied_inputs))
    if not sums_int8_exactly() and not has_int8_product():  # `open_session` says why
        shared.update(name for name, tensor in tensors.items() if tensor.dtype == "int8")
    lists = 0
    if bundle.manifest.vocabulary is not None:
        lists = _LIST_SESSIONS_BYTES + (bundle.folder / VOCABULARY_FILE).stat().st_size
        output = _output_weight(graphs[DECODER_STEP_FILE])
        # By token, beside what the sessions have packed: the weights themselves, the embeddings, or a copy.
        if tensors[output].dtype != "int8":
            shared.add(output)
        elif tensors.keys().isdisjoint(INT8_EMBEDDINGS):
            lists += tensors[output].size
    kind = bundle.manifest.tokenizer
    tokenizer = _TOKENIZER_FACTORS[kind] * sum((bundle.folder / name).stat().st_size for name in TOKENIZER_FILES[kind])
    kept = sum(tensors[name].size for name in shared) + lists
    return num_gpus * on_gpu + copied + kept + tokenizer + _FIXED_BYTES


def _output_weight(step: Graph) -> str:
    """The weight of the output layer, whose product is the last of a step."""
    products = [node.inputs[1] for node in step.nodes if node.operator in _PRODUCTS]
    return products[-1]


def _copied(graph: Graph, inputs: Mapping[str, int]) -> Iterator[str]:
    """Weights that the session has a copy of."""
    for node in graph.nodes:
        place = inputs.get(node.operator)
        if place is not None and _is_weight(graph, node.inputs[place]):
            yield node.inputs[place]


def _shared(graph: Graph, copied_inputs: Mapping[str, int]) -> Iterator[str]:
    """Weights that the session refers to; an embedding may be both."""
    for node in graph.nodes:
        for place, name in enumerate(node.inputs):
            if _is_weight(graph, name) and place != copied_inputs.get(node.operator):
                yield name


def _is_weight(graph: Graph, name: str) -> bool:
    return name in graph.tensors and bool(graph.tensors[name].file)
