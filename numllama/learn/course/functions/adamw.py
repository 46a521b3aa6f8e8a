"""One step of AdamW.

The equations are on the page docs/chapters/adamw. Return new arrays: those that are given stay as they are.
"""

import numpy as np


def adamw_step(w, g, m, v, t, lr, betas, eps, weight_decay):
    """Step number t, with bias correction and decoupled weight decay.

    Parameters
    ----------
    w, g, m, v : array, any shape
        The weights, their gradient, and the running means of the gradient and of its square, all of one shape.
    t : int
        The number of this step, from 1.
    lr : float
    betas : (float, float)
        How much of m and of v is kept.
    eps : float
    weight_decay : float

    Returns
    -------
    w, m, v : array
        After the step, of the same shape. m and v as they are kept, not corrected.
    """
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    w = w - lr * weight_decay * w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w, m, v


# ---------------------------------------------------------------------------------------------- the test:  pytest adamw.py


def steps(gradients, weight_decay=0.0, eps=1e-12):
    """The weights after each step, from ones, and the last moments."""
    w, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    seen = []
    for t, g in enumerate(gradients, 1):
        w, m, v = adamw_step(w, g, m, v, t, 0.1, (0.9, 0.95), eps, weight_decay)
        seen.append(w)
    return np.array(seen), m, v


def test_the_first_step_has_the_same_size_for_every_gradient():
    seen, _, _ = steps([np.array([1e3, -1.0, 1e-3])])
    np.testing.assert_allclose(seen[0], [0.9, 1.1, 0.9])


def test_a_large_eps_makes_small_gradients_move_less():
    g = np.array([9.0, -1.0, 0.25])
    seen, _, _ = steps([g], eps=1.0)
    np.testing.assert_allclose(seen[0], 1 - 0.1 * np.array([0.9, -0.5, 0.2]))  # g / (|g| + 1)


def test_equal_gradients_give_equal_steps():
    seen, _, _ = steps([np.array([5.0, -2.0, 0.1])] * 20)
    np.testing.assert_allclose(seen[-1], [1 - 20 * 0.1, 1 + 20 * 0.1, 1 - 20 * 0.1])


def test_the_moments_are_weighted_sums_of_all_gradients():
    gradients = np.random.default_rng(0).standard_normal((6, 3))
    _, m, v = steps(gradients)
    age = np.arange(6)[::-1, None]
    np.testing.assert_allclose(m, (0.1 * 0.9**age * gradients).sum(0))
    np.testing.assert_allclose(v, (0.05 * 0.95**age * gradients**2).sum(0))


def test_without_a_gradient_the_weights_shrink():
    seen, _, _ = steps(np.zeros((4, 3)), weight_decay=0.5)
    np.testing.assert_allclose(seen[-1], np.full(3, (1 - 0.1 * 0.5) ** 4))


def test_the_decay_does_not_depend_on_the_gradient():
    gradients = [np.array([1e3, -1.0, 1e-3])]
    (with_decay,), _, _ = steps(gradients, weight_decay=0.5)
    (without,), _, _ = steps(gradients)
    np.testing.assert_allclose(with_decay - without, np.full(3, -0.1 * 0.5))
