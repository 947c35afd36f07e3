//! How the next token is chosen from logits. The device does it in `shaders/sample.wgsl`; the
//! sampler here does the same on the host, for whoever has the logits anyway, and is what the
//! kernels are tested against.

use crate::error::{Error, Result};
use crate::kernels::sample::Choice;

/// How tokens are chosen, and how many.
///
/// First the penalties, then the temperature; of what top-k keeps, top-p keeps the likeliest
/// that make up its share, and min-p those that are not much less likely than the likeliest.
/// Values that are equal are kept or dropped together.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 chooses the likeliest token.
    pub temperature: f32,
    /// Only so many of the likeliest tokens stay; 0 keeps all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability stay; 1 keeps all.
    pub top_p: f32,
    /// Only tokens that are at least so likely, as a share of the likeliest, stay; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits, and multiplies negative ones, of tokens of the prompt and of
    /// generated ones; 1 for none (Keskar et al. 2019).
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens that were generated; 0 for none.
    pub presence_penalty: f32,
    /// Taken off the logits as often as a token was generated; 0 for none.
    pub frequency_penalty: f32,
    /// Seed of the generator.
    pub seed: u64,
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// Whether tokens that end a text are as good as others.
    pub ignore_eos: bool,
}

impl Default for Sampling {
    /// Greedy, up to 256 tokens.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            max_tokens: 256,
            ignore_eos: false,
        }
    }
}

/// Tokens less likely than the likeliest by a factor of e^32 are never chosen.
const FARTHEST: f32 = 32.0;

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

    /// Sets whether tokens that end a text are as good as others.
    #[must_use]
    pub fn ignore_eos(mut self, ignore_eos: bool) -> Self {
        self.ignore_eos = ignore_eos;
        self
    }

    /// Refuses values that make no sense.
    pub fn check(&self) -> Result<()> {
        let options = [
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "more than 0 and at most 1"),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1"),
            ("repetition-penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "more than 0"),
            ("presence-penalty", self.presence_penalty, true, "a number"),
            ("frequency-penalty", self.frequency_penalty, true, "a number"),
        ];
        match options.into_iter().find(|(_, value, fits, _)| !(value.is_finite() && *fits)) {
            Some((name, value, _, expected)) => {
                Err(Error::option(name, format!("expected {expected}, found {value}")))
            }
            None => Ok(()),
        }
    }

    /// Whether any token is penalised.
    pub fn has_penalties(&self) -> bool {
        (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)
    }

    /// The same as the device reads it.
    pub fn choice(&self) -> Choice {
        let chance = if self.temperature > 0.0 { Choice::CHANCE } else { 0 };
        let penalties = if self.has_penalties() { Choice::PENALTIES } else { 0 };
        Choice {
            // Below this temperature only equals of the largest are left.
            scale: if self.temperature > 0.0 { 1.0 / self.temperature.max(1e-6) } else { 1.0 },
            top_k: self.top_k.min(u32::MAX as usize) as u32,
            top_p: self.top_p,
            cut: if self.min_p > 0.0 { (-self.min_p.ln()).min(FARTHEST) } else { FARTHEST },
            repetition: self.repetition_penalty,
            presence: self.presence_penalty,
            frequency: self.frequency_penalty,
            flags: chance | penalties,
            seed: [self.seed as u32, (self.seed >> 32) as u32],
        }
    }

    /// How often the device is to think that each id of a vocabulary was seen, after a prompt.
    pub(super) fn counts<'a>(vocab: usize, prompt: impl Iterator<Item = &'a u32>) -> Vec<u32> {
        let mut counts = vec![0; vocab];
        for id in prompt {
            if let Some(count) = counts.get_mut(*id as usize) {
                *count = Choice::IN_PROMPT;
            }
        }
        counts
    }
}

/// Chooses on the host. What it chooses depends on nothing but its options, the logits, the
/// position and the tokens before.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: Sampling,
    choice: Choice,
    counts: Vec<u32>,
    prompt: Vec<u32>,
    values: Vec<f32>,
    distances: Vec<f32>,
}

impl Sampler {
    /// Checks the options.
    pub fn new(options: &Sampling) -> Result<Self> {
        options.check()?;
        Ok(Self {
            options: options.clone(),
            choice: options.choice(),
            counts: Vec::new(),
            prompt: Vec::new(),
            values: Vec::new(),
            distances: Vec::new(),
        })
    }

    /// The options.
    pub fn options(&self) -> &Sampling {
        &self.options
    }

    /// Starts anew after a prompt, whose tokens penalties apply to.
    pub fn start(&mut self, prompt: &[u32]) {
        self.prompt = prompt.to_vec();
        self.counts.clear();
    }

    /// The token that follows position `position`, by the logits of every id there. Logits that
    /// are no numbers are an error.
    pub fn sample(&mut self, logits: &[f32], position: usize) -> Result<u32> {
        if logits.is_empty() {
            return Err(Error::shape("sample", "there are no logits"));
        }
        if logits.iter().any(|l| l.is_nan() || *l == f32::INFINITY) {
            return Err(Error::BadLogits { position });
        }
        let penalties = self.choice.flags & Choice::PENALTIES != 0;
        if penalties && self.counts.is_empty() {
            self.counts = Sampling::counts(logits.len(), self.prompt.iter());
        }
        self.values.clear();
        self.values.extend_from_slice(logits);
        if penalties {
            for (value, count) in self.values.iter_mut().zip(&self.counts) {
                *value = penalised(*value, *count, &self.choice);
            }
        }
        for value in &mut self.values {
            *value = value.clamp(-1e30, 1e30) * self.choice.scale;
        }
        let top = self.values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let cut = if self.choice.flags & Choice::CHANCE != 0 { self.cut(top) } else { 0.0 };
        let kept = self.values.iter().zip(0u32..).filter(|(value, _)| top - **value <= cut);
        let scored = kept.map(|(value, id)| (self.score(top - value, position, id), id));
        // Of equals the lowest id.
        let best = scored.reduce(|a, b| if b.0 > a.0 { b } else { a });
        let id = best.map_or(0, |(_, id)| id);
        if let Some(count) = self.counts.get_mut(id as usize) {
            *count += 1;
        }
        Ok(id)
    }

    /// The distance from the largest value that top-k, top-p and min-p leave.
    fn cut(&mut self, top: f32) -> f32 {
        let mut cut = self.choice.cut;
        let distances = &mut self.distances;
        distances.clear();
        distances.extend(self.values.iter().map(|v| top - v).filter(|d| *d <= cut));
        distances.sort_unstable_by(f32::total_cmp);
        let top_k = self.choice.top_k as usize;
        if top_k > 0 && top_k <= distances.len() {
            cut = distances[top_k - 1];
            distances.retain(|d| *d <= cut);
        }
        if self.choice.top_p < 1.0 {
            let mass = |d: &f32| f64::from((-d).exp());
            let enough = distances.iter().map(mass).sum::<f64>() * f64::from(self.choice.top_p);
            let mut sum = 0.0;
            let last = distances.iter().find(|d| {
                sum += mass(d);
                sum >= enough
            });
            cut = last.copied().unwrap_or(cut);
        }
        cut
    }

    /// The kept token with the largest score is chosen: Gumbel noise less the distance from the
    /// largest value.
    fn score(&self, distance: f32, position: usize, id: u32) -> f32 {
        if self.choice.flags & Choice::CHANCE == 0 {
            return 0.0;
        }
        noise(threefry(self.choice.seed, [position as u32, id])[0]) - distance
    }
}

fn penalised(logit: f32, count: u32, choice: &Choice) -> f32 {
    let generated = count & !Choice::IN_PROMPT;
    let mut logit = logit;
    if count != 0 {
        logit *= if logit > 0.0 { 1.0 / choice.repetition } else { choice.repetition };
    }
    if generated != 0 {
        logit -= choice.presence + generated as f32 * choice.frequency;
    }
    logit
}

/// Threefry-2x32 with 20 rounds (Salmon et al., Parallel random numbers: as easy as 1, 2, 3,
/// 2011): random bits for a key and a counter.
fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const TURNS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let keys = [key[0], key[1], 0x1bd1_1bda ^ key[0] ^ key[1]];
    let [mut a, mut b] = [counter[0].wrapping_add(key[0]), counter[1].wrapping_add(key[1])];
    for i in 0..5 {
        for turn in TURNS[i % 2] {
            a = a.wrapping_add(b);
            b = b.rotate_left(turn) ^ a;
        }
        a = a.wrapping_add(keys[(i + 1) % 3]);
        b = b.wrapping_add(keys[(i + 2) % 3]).wrapping_add(i as u32 + 1);
    }
    [a, b]
}

/// Gumbel noise, -log(-log u), for a u made of 32 random bits.
fn noise(bits: u32) -> f32 {
    let u = (f64::from(bits) + 0.5) / 4_294_967_296.0;
    -(-(-u).ln_1p()).ln() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(options: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(&options).unwrap();
        (0..n).map(|position| sampler.sample(logits, position).unwrap()).collect()
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_largest() {
        assert_eq!(draws(Sampling::default(), &[0.0, 3.0, 3.0, 1.0], 3), [1, 1, 1]);
    }

    /// The vectors that come with the paper's own implementation.
    #[test]
    fn threefry_gives_the_known_answers() {
        assert_eq!(threefry([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry([u32::MAX; 2], [u32::MAX; 2]), [0x1cb9_96fc, 0xbb00_2be7]);
        let pi = threefry([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]);
        assert_eq!(pi, [0xc492_3a9c, 0x483d_f7a0]);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0, -40.0];
        let found = draws(Sampling { temperature: 1.0, seed: 7, ..Sampling::default() }, &logits, 20_000);
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (id, logit) in logits.iter().enumerate() {
            let share = found.iter().filter(|f| **f == id as u32).count() as f64 / 20_000.0;
            let expected = f64::from(*logit).exp() / total;
            assert!((share - expected).abs() < 0.015, "{id}: {share} instead of {expected}");
        }
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_the_tail() {
        let logits = [5.0f32, 4.0, 3.0, 2.0, 1.0];
        let found = |options: Sampling| {
            let mut ids = draws(options, &logits, 500);
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let hot = Sampling { temperature: 10.0, ..Sampling::default() };
        assert_eq!(found(hot.clone()), [0, 1, 2, 3, 4]);
        assert_eq!(found(Sampling { top_k: 2, ..hot.clone() }), [0, 1]);
        assert_eq!(found(Sampling { temperature: 1.0, top_p: 0.8, ..Sampling::default() }), [0, 1]);
        // e^-0.2 = 0.82, e^-0.3 = 0.74
        assert_eq!(found(Sampling { min_p: 0.8, ..hot.clone() }), [0, 1, 2]);
        // Of what top-k keeps: shares of 0.52 and 0.48.
        assert_eq!(found(Sampling { top_k: 2, top_p: 0.5, ..hot }), [0]);
    }

    #[test]
    fn penalties_hold_back_what_was_there() {
        let logits = [1.0f32, 0.9, -1.0];
        let mut sampler = Sampler::new(&Sampling { repetition_penalty: 1.2, ..Sampling::default() }).unwrap();
        sampler.start(&[0]);
        assert_eq!(sampler.sample(&logits, 0).unwrap(), 1);
        let presence = Sampling { presence_penalty: 0.05, ..Sampling::default() };
        assert_eq!(draws(presence, &logits, 3), [0, 0, 0]);
        let frequency = Sampling { frequency_penalty: 0.06, ..Sampling::default() };
        assert_eq!(draws(frequency, &logits, 4), [0, 0, 1, 0]);
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 / 3.0).collect();
        let options = |seed| Sampling { temperature: 1.0, seed, ..Sampling::default() };
        assert_eq!(draws(options(1), &logits, 50), draws(options(1), &logits, 50));
        assert_ne!(draws(options(1), &logits, 50), draws(options(2), &logits, 50));
        assert_ne!(draws(options(1), &logits, 50), draws(options(1 << 32 | 1), &logits, 50));
    }

    #[test]
    fn bad_options_and_bad_logits_are_errors() {
        let base = Sampling::default;
        for bad in [
            Sampling { temperature: -1.0, ..base() },
            Sampling { top_p: 0.0, ..base() },
            Sampling { min_p: 1.5, ..base() },
            Sampling { repetition_penalty: 0.0, ..base() },
            Sampling { frequency_penalty: f32::NAN, ..base() },
        ] {
            assert!(Sampler::new(&bad).is_err(), "{bad:?}");
        }
        let mut sampler = Sampler::new(&base()).unwrap();
        assert!(sampler.sample(&[0.0, f32::NAN], 0).is_err());
        assert!(sampler.sample(&[], 0).is_err());
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -5.0], 0).unwrap(), 1);
    }
}
