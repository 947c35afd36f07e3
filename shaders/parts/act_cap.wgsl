// Activation: cap tanh(x / cap) (Gemma 2, 2024); tanh by an exponential that can't overflow.
fn activated(x: f32) -> f32 {
    let e = exp(-2.0 * abs(x) / p.cap);
    return sign(x) * p.cap * (1.0 - e) / (1.0 + e);
}
