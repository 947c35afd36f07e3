//! Rotary position embedding (Su et al. 2021, RoFormer): frequencies, and the two tables of
//! sines and cosines that kernels combine. All of it in f64.

use crate::shape::ROPE_FINE;

/// How positions rotate pairs of values.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position, one for every pair that turns.
    pub inv_freq: Vec<f64>,
}

impl Rope {
    /// The plain form: pair i of `rotated / 2` turns by theta^(-2 i / rotated) a position.
    pub fn plain(theta: f64, rotated: usize) -> Self {
        Self { inv_freq: (0..rotated / 2).map(|i| theta.powf(-2.0 * i as f64 / rotated as f64)).collect() }
    }

    /// Cosine and sine for `position` and `pair`.
    pub fn rotation(&self, position: usize, pair: usize) -> (f64, f64) {
        let angle = position as f64 * self.inv_freq[pair];
        (angle.cos(), angle.sin())
    }

    /// `[ROPE_FINE + ceil(positions / ROPE_FINE), pairs]` (cos, sin): rotations by 0, 1, ..., ROPE_FINE - 1
    /// positions, then by 0, ROPE_FINE, 2 ROPE_FINE, ...
    pub fn tables(&self, positions: usize) -> Vec<[f32; 2]> {
        let coarse = (0..positions.div_ceil(ROPE_FINE)).map(|i| i * ROPE_FINE);
        (0..ROPE_FINE)
            .chain(coarse)
            .flat_map(|position| {
                (0..self.inv_freq.len()).map(move |pair| {
                    let (cos, sin) = self.rotation(position, pair);
                    [cos as f32, sin as f32]
                })
            })
            .collect()
    }
}
