// Activation: GELU (Hendrycks and Gimpel 2016), x (1 + erf(x / sqrt(2))) / 2. WGSL has no erf: formula
// 7.1.26 of Abramowitz and Stegun is within 1.5e-7 of it.
fn activated(x: f32) -> f32 {
    let z = abs(x) * 0.70710678;
    let t = 1.0 / (1.0 + 0.3275911 * z);
    let sum = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    // The share of the normal distribution beyond |x|.
    let beyond = 0.5 * sum * exp(-z * z);
    return x * select(beyond, 1.0 - beyond, x > 0.0);
}
