//! Choosing the next token from logits: greedy, or by chance with temperature, top-k and
//! top-p. A seed gives the same choices on every run and platform.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::{Error, Result};

/// How tokens are chosen, and how many.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 chooses the likeliest token.
    pub temperature: f32,
    /// Only so many of the likeliest tokens stay; 0 keeps all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability stay; 1 keeps all.
    pub top_p: f32,
    /// Seed of the generator.
    pub seed: u64,
    /// The most tokens to generate.
    pub max_tokens: usize,
}

impl Default for Sampling {
    /// Greedy, up to 256 tokens.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0, max_tokens: 256 }
    }
}

impl Sampling {
    /// Sets the most tokens to generate.
    #[must_use]
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = max_tokens;
        self
    }

    /// Sets the temperature.
    #[must_use]
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets the seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

/// A generator with its options.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: Sampling,
    random: ChaCha8Rng,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// Checks the options.
    pub fn new(options: &Sampling) -> Result<Self> {
        if !(options.temperature.is_finite() && options.temperature >= 0.0) {
            return Err(Error::option(
                "temperature",
                format!("expected 0 or more, found {}", options.temperature),
            ));
        }
        if !(options.top_p > 0.0 && options.top_p <= 1.0) {
            return Err(Error::option(
                "top-p",
                format!("expected more than 0 and at most 1, found {}", options.top_p),
            ));
        }
        let random = ChaCha8Rng::seed_from_u64(options.seed);
        Ok(Self { options: options.clone(), random, candidates: Vec::new() })
    }

    /// The options.
    pub fn options(&self) -> &Sampling {
        &self.options
    }

    /// The next token for `logits`, one for each id. Logits that are no numbers are an error.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let top = argmax(logits)?;
        if self.options.temperature == 0.0 || self.options.top_k == 1 {
            return Ok(top);
        }
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(logits.iter().zip(0..).map(|(&l, id)| (l, id)));
        // Ties go to the lower id, so that the order is the same everywhere.
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if self.options.top_k > 0 && self.options.top_k < candidates.len() {
            candidates.select_nth_unstable_by(self.options.top_k - 1, order);
            candidates.truncate(self.options.top_k);
        }
        candidates.sort_unstable_by(order);
        let highest = logits[top as usize];
        let mut total = 0.0f64;
        for (value, _) in candidates.iter_mut() {
            *value = ((*value - highest) / self.options.temperature).exp();
            total += f64::from(*value);
        }
        if self.options.top_p < 1.0 {
            let enough = total * f64::from(self.options.top_p);
            let mut sum = 0.0;
            let kept = candidates.iter().take_while(|(p, _)| {
                let before = sum;
                sum += f64::from(*p);
                before < enough
            });
            let kept = kept.count().max(1);
            candidates.truncate(kept);
            total = candidates.iter().map(|(p, _)| f64::from(*p)).sum();
        }
        let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = uniform * total;
        for (p, id) in candidates.iter() {
            left -= f64::from(*p);
            if left < 0.0 {
                return Ok(*id);
            }
        }
        Ok(candidates.last().map_or(top, |(_, id)| *id))
    }
}

/// The id of the largest logit, the lowest of several.
fn argmax(logits: &[f32]) -> Result<u32> {
    let mut best: Option<(f32, u32)> = None;
    for (&value, id) in logits.iter().zip(0..) {
        if value.is_nan() || value == f32::INFINITY {
            return Err(Error::BadLogits { id, value });
        }
        if best.is_none_or(|(top, _)| value > top) {
            best = Some((value, id));
        }
    }
    best.map(|(_, id)| id).ok_or_else(|| Error::shape("sample", "there are no logits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(options: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(&options).unwrap();
        (0..n).map(|_| sampler.sample(logits).unwrap()).collect()
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_largest() {
        assert_eq!(draws(Sampling::default(), &[0.0, 3.0, 3.0, 1.0], 3), [1, 1, 1]);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0];
        let found = draws(Sampling { temperature: 1.0, seed: 7, ..Sampling::default() }, &logits, 20_000);
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (id, logit) in logits.iter().enumerate() {
            let share = found.iter().filter(|f| **f == id as u32).count() as f64 / 20_000.0;
            let expected = f64::from(*logit).exp() / total;
            assert!((share - expected).abs() < 0.015, "{id}: {share} instead of {expected}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [5.0f32, 4.0, 3.0, 2.0, 1.0];
        let top_k = Sampling { temperature: 10.0, top_k: 2, ..Sampling::default() };
        assert!(draws(top_k, &logits, 500).iter().all(|id| *id < 2));
        let top_p = Sampling { temperature: 1.0, top_p: 0.8, ..Sampling::default() };
        let found = draws(top_p, &logits, 500);
        assert!(found.iter().all(|id| *id < 2) && found.contains(&1));
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 / 3.0).collect();
        let options = |seed| Sampling { temperature: 1.0, seed, ..Sampling::default() };
        assert_eq!(draws(options(1), &logits, 50), draws(options(1), &logits, 50));
        assert_ne!(draws(options(1), &logits, 50), draws(options(2), &logits, 50));
    }

    #[test]
    fn bad_options_and_bad_logits_are_errors() {
        assert!(Sampler::new(&Sampling { temperature: -1.0, ..Sampling::default() }).is_err());
        assert!(Sampler::new(&Sampling { top_p: 0.0, ..Sampling::default() }).is_err());
        let mut sampler = Sampler::new(&Sampling::default()).unwrap();
        assert!(sampler.sample(&[0.0, f32::NAN]).is_err());
        assert!(sampler.sample(&[]).is_err());
    }
}
