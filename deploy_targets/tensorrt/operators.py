"""What TensorRT's ONNX parser reads: operators, each with where that stands, and opsets by release.

Operators are those of the parser's own list (docs/operators.md of onnx/onnx-tensorrt) and, where that does
not name one, what the parser of TensorRT for RTX answers when it is asked (``supports_operator``); a test
asks it about every operator of ONNX. The restrictions are in :mod:`smash_targets.tensorrt.check`.
"""

from __future__ import annotations

from smash_base.errors import UsageError

LIST = "operators.md of 10.15"
BOTH = "operators.md of 10.1 and 10.15"
QUANTISED = "operators.md of 10.15; restrictions from the parser's importer, 10.1"
ASKED = "asked of the parser of TensorRT for RTX 1.7.1"
RTX = (1, 7)  # the release of TensorRT for RTX, which counts by itself

_BOTH = """
Add AveragePool BatchNormalization Concat Conv Dropout Flatten Gemm GlobalAveragePool Identity LeakyRelu
MaxPool Mul Pad ReduceMean Relu Reshape Sigmoid Slice Softmax Split Tanh
"""
_LIST = """
Abs Acos Acosh And ArgMax ArgMin Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Constant ConstantOfShape
ConvTranspose Cos Cosh CumSum DepthToSpace Div Einsum Elu Equal Erf Exp Expand EyeLike Floor Gather
GatherElements GatherND Gelu GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
HardSigmoid HardSwish Hardmax InstanceNormalization IsInf IsNaN LayerNormalization Less LessOrEqual Log
LogSoftmax LpNormalization LpPool LRN MatMul Max Mean MeanVarianceNormalization Min Mish Mod Neg Not OneHot
Or Pow PRelu Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMin ReduceProd
ReduceSum ReduceSumSquare Resize Round Selu Shape Shrink Sign Sin Sinh Size Softplus Softsign SpaceToDepth
Sqrt Squeeze Sub Sum Tan ThresholdedRelu Tile TopK Transpose Unsqueeze Upsample Where Xor
"""
_ASKED = """
Attention BlackmanWindow CausalConvWithState GRU HammingWindow HannWindow If LSTM LinearAttention Loop
NonMaxSuppression NonZero RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike
ReverseSequence RoiAlign RotaryEmbedding STFT Scan Scatter ScatterElements ScatterND Swish TensorScatter Trilu
"""
_REFUSED_WHEN_ASKED = "BitCast CumProd DeformConv SwiGLU"
_REFUSED = """
AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress
ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger MaxRoiPool MaxUnpool
MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement
QLinearConv QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase
SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat
StringNormalizer StringSplit TfIdfVectorizer Unique
"""
_DLA = """
Abs Add AveragePool Clip Concat Conv DequantizeLinear GlobalAveragePool Identity Max MaxPool Min Mul PRelu
QuantizeLinear Relu Sigmoid Softmax Sub Sum Tanh
"""
_INTEGERS = """
ConstantOfShape Expand Gather GatherElements GatherND Pad ReduceMax ReduceMean ReduceMin ReduceSum Reshape
Resize Slice Split Squeeze Tile TopK Unsqueeze
"""

# operator -> where it stands that the parser reads it
SUPPORTED: dict[str, str] = {
    **dict.fromkeys(_ASKED.split(), ASKED),
    **dict.fromkeys(_LIST.split(), LIST),
    **dict.fromkeys(_BOTH.split(), BOTH),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), QUANTISED),
}
# operator -> where it stands that the parser refuses it
REFUSED: dict[str, str] = {
    **dict.fromkeys(_REFUSED.split(), LIST),
    **dict.fromkeys(_REFUSED_WHEN_ASKED.split(), ASKED),
}

# Operators that become layers which a DLA takes, within its limits: the layer list of NvInfer.h, 11.1.
DLA = frozenset(_DLA.split())
# Operators whose int64 inputs are shapes, axes or indices, not values to compute with.
INTEGERS = frozenset(_INTEGERS.split())

# first release -> opsets, and where that stands; a release between two rows has those of the earlier one
_OPSETS = (
    (RTX, (7, 28), ASKED),
    ((8, 6), (1, 17), "operators.md of 8.6"),
    ((10, 0), (9, 20), "operators.md of 10.0 and 10.1"),
    ((10, 15), (9, 24), LIST),
    ((11, 0), (9, 25), "the ONNX opset guide of 11.4"),
)


def release_of(text: str) -> tuple[int, int | None]:
    """Major and minor of "8.6", "10", "10.3", "11" or "rtx"; without a minor, every release of that major.

    Raises:
        UsageError: a release that is not known here.
    """
    if text == "rtx":
        return RTX
    major, _, minor = text.partition(".")
    known = text == "8.6" or (major in ("10", "11") and (minor.isdecimal() or text == major))
    if not known:
        raise UsageError("TensorRT release", expected="8.6, 10, 10.MINOR, 11 or 11.MINOR", received=text)
    return int(major), int(minor) if minor else None


def opsets_of(release: tuple[int, int | None]) -> tuple[int, int, str]:
    """Smallest and largest opset that a release reads (for a whole major what all of it reads), and the
    source."""
    rows = [row for row in _OPSETS if row[0] <= (release[0], release[1] or 0)]
    _, (least, most), source = rows[-1]
    return least, most, source


def dla_of(release: tuple[int, int | None]) -> tuple[bool, str]:
    """Whether a release has DLA at all, and on what; after the support pages of 11.4.1."""
    major, minor = release
    if release == RTX:
        return False, "RTX cards have none"
    if major == 8:
        return True, "on Xavier and Orin"
    if major == 10:
        there = minor is None or minor <= 7
        return there, "10.7 is the last 10.x with DLA (JetPack 6 has 10.3)"
    there = minor is None or minor >= 4
    return there, "in 11 only 11.4.1 and newer has it, on AGX Orin with JetPack 7.2.2 or newer"
