// Scores: s becomes cap tanh(s / cap) (Gemma 2, 2024); tanh by an exponential that can't overflow.
fn capped(score: f32) -> f32 {
    let e = exp(-2.0 * abs(score) / p.cap);
    return sign(score) * p.cap * (1.0 - e) / (1.0 + e);
}
