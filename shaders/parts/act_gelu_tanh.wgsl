// Activation: GELU by a tanh (Hendrycks and Gimpel 2016). (1 + tanh(u)) / 2 is 1 / (1 + exp(-2 u)).
fn activated(x: f32) -> f32 {
    return x / (1.0 + exp(x * (-1.5957691216 - 0.0713548162726 * x * x)));
}
