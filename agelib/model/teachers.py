"""Knowledge distillation: a network learns from trained models' answers, beside the labels."""

from collections.abc import Sequence
from typing import Any

from agelib.backend import keras, tf
from agelib.model.saved import load_model, model_path

TEACHERS_SHARE = 0.7  # of the loss; the labels have the rest


@keras.saving.register_keras_serializable("agelib")
class Teachers(keras.layers.Layer):
    """Adds to the loss how far a network's outputs are from what trained models answer.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. The teachers get the same
    augmented images: Beyer et al., "Knowledge Distillation: A Good Teacher Is Patient and
    Consistent", CVPR 2022. `files` are the models, as in `Config.teachers`.
    """

    def __init__(self, files: Sequence[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.files = list(files)
        models = [load_model(model_path(file))[0] for file in files]
        # Inside a function, where Keras does not count their weights among the network's.
        self.answers = lambda images: [_answer(model, images) for model in models]

    def call(self, images: tf.Tensor, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Returns `outputs["age"]`, unchanged; images are of 0 to 255."""
        answers = self.answers(images)
        for head, output in outputs.items():
            told = keras.ops.mean([answer[head] for answer in answers], axis=0)
            apart = keras.losses.categorical_crossentropy(told, output)
            self.add_loss(TEACHERS_SHARE * keras.ops.mean(apart))
        return outputs["age"]

    def get_config(self) -> dict[str, Any]:
        """Returns what Keras needs to make this layer again."""
        return super().get_config() | {"files": self.files}


def _answer(model: keras.Model, images: tf.Tensor) -> dict[str, tf.Tensor]:
    size = model.input_shape[1:3]
    if images.shape[1:3] != size:
        images = keras.ops.image.resize(images, size)
    return model(images, training=False)
