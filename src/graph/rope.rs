//! Rotary position embedding (Su et al. 2021, RoFormer): frequencies, their scaling for longer
//! texts than a model was trained on, and the two tables of sines and cosines that kernels
//! combine. All of it in f64.

use std::f64::consts::TAU;
use std::fmt;

use crate::shape::ROPE_FINE;

/// How positions rotate pairs of values.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Values of a head that turn: even.
    pub rotated: usize,
    /// What long texts change.
    pub scaling: RopeScaling,
}

/// How frequencies are changed for texts that are longer than those of the training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All are divided (position interpolation, Chen et al. 2023).
    Linear {
        /// By this.
        factor: f64,
    },
    /// The base grows with a context beyond `positions` (dynamic NTK scaling, Peng et al. 2023,
    /// appendix B.2).
    Dynamic {
        /// How many times longer texts may be.
        factor: f64,
        /// Positions of the training.
        positions: usize,
    },
    /// Slow ones are divided, fast ones stay, and those between are mixed (YaRN, Peng et al. 2023).
    Yarn {
        /// How many times longer texts may be.
        factor: f64,
        /// Positions of the training.
        positions: usize,
        /// Turns over the training's positions from which a pair is fast.
        fast: f64,
        /// Turns up to which it is slow.
        slow: f64,
        /// Whether the bounds are rounded to whole pairs.
        truncate: bool,
        /// Factor of sines and cosines.
        magnitude: f64,
    },
    /// As YaRN, by wavelengths (Llama 3.1).
    Llama3 {
        /// How many times longer texts may be.
        factor: f64,
        /// Positions of the training over the longest wavelength that is mixed.
        low: f64,
        /// Positions of the training over the shortest one.
        high: f64,
        /// Positions of the training.
        positions: usize,
    },
    /// Each is divided by a factor of its own, by another in contexts beyond `positions`
    /// (LongRoPE, Ding et al. 2024).
    Long {
        /// Divisors of short texts, one for each pair.
        short: Vec<f64>,
        /// Divisors of long ones.
        long: Vec<f64>,
        /// Positions of the training.
        positions: usize,
        /// Factor of sines and cosines.
        magnitude: f64,
    },
}

impl fmt::Display for RopeScaling {
    /// What follows a sentence that ends here: nothing by default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => Ok(()),
            Self::Linear { factor } => write!(f, ", linear scaling by {factor}"),
            Self::Dynamic { factor, positions } => {
                write!(f, ", dynamic scaling by {factor} beyond {positions}")
            }
            Self::Yarn { factor, positions, .. } => write!(f, ", YaRN scaling by {factor} of {positions}"),
            Self::Llama3 { factor, positions, .. } => {
                write!(f, ", Llama 3 scaling by {factor} of {positions}")
            }
            Self::Long { short, long, .. } if short == long => f.write_str(", factors for each pair"),
            Self::Long { positions, .. } => write!(f, ", LongRoPE beyond {positions}"),
        }
    }
}

/// The usual factor of sines and cosines in YaRN, for texts `factor` times as long.
pub fn yarn_magnitude(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}

/// Rotations in a context of some length.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotations {
    /// Radians per position, one for every pair that turns.
    pub inv_freq: Vec<f64>,
    /// Factor of sines and cosines.
    pub magnitude: f64,
}

impl Rope {
    /// The plain form: pair i of `rotated / 2` turns by theta^(-2 i / rotated) a position.
    pub fn plain(theta: f64, rotated: usize) -> Self {
        Self { theta, rotated, scaling: RopeScaling::Default }
    }

    /// Which rotations texts of `length` positions have: the same where this is the same.
    pub fn regime(&self, length: usize) -> usize {
        match &self.scaling {
            RopeScaling::Dynamic { positions, .. } => length.max(*positions),
            RopeScaling::Long { short, long, positions, .. } if short != long => {
                usize::from(length > *positions)
            }
            _ => 0,
        }
    }

    /// Whether short and long texts turn by other factors: what was turned by the ones is wrong in a text
    /// that has the others. (With dynamic scaling old keys keep their rotations.)
    pub fn is_long(&self) -> bool {
        matches!(&self.scaling, RopeScaling::Long { short, long, .. } if short != long)
    }

    /// The rotations in a text of `length` positions.
    pub fn rotations(&self, length: usize) -> Rotations {
        let (theta, dim) = (self.theta, self.rotated as f64);
        let base = |theta: f64| move |i: usize| theta.powf(-2.0 * i as f64 / dim);
        let pairs = 0..self.rotated / 2;
        let plain = |inv_freq| Rotations { inv_freq, magnitude: 1.0 };
        match &self.scaling {
            RopeScaling::Default => plain(pairs.map(base(theta)).collect()),
            RopeScaling::Linear { factor } => plain(pairs.map(base(theta)).map(|f| f / factor).collect()),
            RopeScaling::Dynamic { factor, positions } => {
                let stretch = factor * length.max(*positions) as f64 / *positions as f64 - (factor - 1.0);
                // A single pair has the frequency 1 whatever its base.
                let power = if dim > 2.0 { dim / (dim - 2.0) } else { 0.0 };
                plain(pairs.map(base(theta * stretch.powf(power))).collect())
            }
            RopeScaling::Yarn { factor, positions, fast, slow, truncate, magnitude } => {
                let pair_of =
                    |turns: f64| dim * (*positions as f64 / (turns * TAU)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (pair_of(*fast), pair_of(*slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let width = if low == high { 0.001 } else { high - low };
                let mixed = |(i, f): (usize, f64)| {
                    let slow = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    f / factor * slow + f * (1.0 - slow)
                };
                let inv_freq = pairs.map(base(theta)).enumerate().map(mixed).collect();
                Rotations { inv_freq, magnitude: *magnitude }
            }
            RopeScaling::Llama3 { factor, low, high, positions } => {
                let mixed = |f: f64| {
                    let waves = *positions as f64 * f / TAU;
                    let fast = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * (1.0 - fast) + f * fast
                };
                plain(pairs.map(base(theta)).map(mixed).collect())
            }
            RopeScaling::Long { short, long, positions, magnitude } => {
                let factors = if length > *positions { long } else { short };
                let inv_freq = pairs.map(base(theta)).zip(factors).map(|(f, factor)| f / factor).collect();
                Rotations { inv_freq, magnitude: *magnitude }
            }
        }
    }
}

impl Rotations {
    /// Cosine and sine for `position` and `pair`.
    pub fn at(&self, position: usize, pair: usize) -> (f64, f64) {
        let angle = position as f64 * self.inv_freq[pair];
        (angle.cos() * self.magnitude, angle.sin() * self.magnitude)
    }

    /// `[ROPE_FINE + ceil(positions / ROPE_FINE), pairs]` (cos, sin): rotations by 0, 1, ..., ROPE_FINE - 1
    /// positions, then by 0, ROPE_FINE, 2 ROPE_FINE, ..., which bear the magnitude.
    pub fn tables(&self, positions: usize) -> Vec<[f32; 2]> {
        let plain = Self { magnitude: 1.0, ..self.clone() };
        let fine = (0..ROPE_FINE).map(|position| (&plain, position));
        let coarse = (0..positions.div_ceil(ROPE_FINE)).map(|i| (self, i * ROPE_FINE));
        fine.chain(coarse)
            .flat_map(|(rotations, position)| {
                (0..self.inv_freq.len()).map(move |pair| {
                    let (cos, sin) = rotations.at(position, pair);
                    [cos as f32, sin as f32]
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frequencies of some pairs, computed apart from this by the formulas of the papers and of
    /// Hugging Face's transformers 5.
    fn check(rope: &Rope, length: usize, expected: &[(usize, f64)]) {
        let found = rope.rotations(length).inv_freq;
        assert_eq!(found.len(), rope.rotated / 2);
        for (pair, value) in expected {
            let error = (found[*pair] / value - 1.0).abs();
            assert!(error < 1e-12, "{:?}, pair {pair}: {} instead of {value}", rope.scaling, found[*pair]);
        }
    }

    #[test]
    fn yarn_mixes_between_slow_and_fast_pairs() {
        let magnitude = yarn_magnitude(4.0, 1.0);
        assert!((magnitude - 1.138_629_436_111_989).abs() < 1e-12);
        let (fast, slow) = (32.0, 1.0);
        let scaling =
            RopeScaling::Yarn { factor: 4.0, positions: 32768, fast, slow, truncate: true, magnitude };
        let rope = Rope { theta: 1e6, rotated: 128, scaling };
        let expected = [
            (0, 1.0),
            (20, 0.013_335_214_321_633_24),
            (30, 0.001_064_360_981_247_001_7),
            (40, 4.445_698_525_097_307e-5),
            (63, 3.102_344_401_879_299e-7),
        ];
        check(&rope, 0, &expected);
        let (cos, sin) = rope.rotations(0).at(0, 5);
        assert_eq!((cos, sin), (magnitude, 0.0));
    }

    #[test]
    fn a_context_beyond_the_training_changes_the_base() {
        let scaling = RopeScaling::Dynamic { factor: 2.0, positions: 2048 };
        let rope = Rope { theta: 1e4, rotated: 64, scaling };
        check(&rope, 2048, &[(0, 1.0), (16, 0.01)]);
        let expected =
            [(1, 0.704_269_325_216_553_3), (16, 0.003_662_860_395_123_453), (31, 1.905_030_617_376_177e-5)];
        check(&rope, 8192, &expected);
    }

    #[test]
    fn wavelengths_decide_in_llama_3() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, positions: 8192 };
        let rope = Rope { theta: 5e5, rotated: 128, scaling };
        let expected = [
            (28, 0.003_211_445_994_752_591_3),
            (30, 0.001_371_893_567_761_138_1),
            (35, 9.556_212_353_964_683e-5),
            (40, 3.428_102_195_952_591e-5),
            (63, 3.068_925_988_914_511e-7),
        ];
        check(&rope, 0, &expected);
    }

    #[test]
    fn long_contexts_have_factors_of_their_own() {
        let (short, long) = (vec![1.0, 2.0], vec![4.0, 8.0]);
        let scaling = RopeScaling::Long { short, long, positions: 100, magnitude: 1.5 };
        let rope = Rope { theta: 1e4, rotated: 4, scaling };
        check(&rope, 100, &[(0, 1.0), (1, 0.005)]);
        check(&rope, 101, &[(0, 0.25), (1, 0.00125)]);
        // The coarse half of the tables has the magnitude, so that products have it once.
        let tables = rope.rotations(100).tables(1);
        assert_eq!((tables[0], tables[2 * ROPE_FINE]), ([1.0, 0.0], [1.5, 0.0]));
    }
}
