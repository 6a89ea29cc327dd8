"""Everything that differs between Keras 3 and tf_keras (Keras 2), and every use of a private Keras API.

No other package asks which of the two Keras versions a model belongs to.
"""

from tfspline._keras.carriers import Carrier, carrier_classes
from tfspline._keras.fit import (
    Callback,
    StepCallback,
    add_penalty,
    check_loss,
    iterations,
    loss,
    share_loss,
    tf_variable,
)
from tfspline._keras.graph import (
    Node,
    call,
    check_model,
    computes_mask,
    every_path,
    is_called,
    is_graph,
    is_symbolic,
    is_unbuilt_sequential,
    keeps_shape,
    layer_paths,
    mask_of,
    nodes,
    pruning_wrappers,
    run,
    shapes_called_on,
)
from tfspline._keras.layers import (
    arguments,
    attention_weight,
    builtin_class_name,
    clear_losses,
    copy_states,
    finalize,
    first_argument,
    first_builtin,
    function_graph,
    function_name,
    innermost,
    inputs_of,
    is_builtin,
    is_lookup,
    op_name,
    output_shape,
    own_activation,
    place_of,
    sublayers,
    weight,
    weight_shapes,
    weights,
    with_arguments,
    without_activation,
)
from tfspline._keras.modules import (
    is_layer_class,
    is_model,
    keras_modules,
    keras_named,
    keras_of,
    load_model,
    of_class,
    tfmot,
)
from tfspline._keras.rebuilding import copy_of, object_config, rebuild, why_fixed
from tfspline._keras.references import TF_FUNCTION, has_contents, is_layer, is_weight, variable_of, variables
from tfspline._keras.rms_norms import is_rms_norm
from tfspline._keras.unrolling import unroll, why_not_unrolled
from tfspline._keras.watching import runs_own_code
