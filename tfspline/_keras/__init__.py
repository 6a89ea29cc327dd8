"""The two Kerases: which one a model is made of, and everything in which they differ.

Nothing else in the package asks whether a model is a Keras 3 or a tf_keras (Keras 2) model.
"""

from tfspline._keras.fit import (
    Callback,
    StepCallback,
    add_penalty,
    check_loss,
    iterations,
    loss,
    set_constraint,
    tf_variable,
)
from tfspline._keras.graph import (
    Node,
    call,
    check_model,
    is_graph,
    is_symbolic,
    layer_paths,
    nodes,
    pruning_wrappers,
    rebuild,
    run,
)
from tfspline._keras.layers import (
    activation_name,
    arguments,
    builtin_class_name,
    config_of,
    finalize,
    from_config,
    op_name,
    sublayers,
    weight,
    weights,
)
from tfspline._keras.modules import is_model, keras_named, keras_of, kerases, of_class, tfmot
from tfspline._keras.saving import load_model
