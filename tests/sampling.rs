//! Choosing tokens on the device: the kernels against the sampler on the host, and streams that
//! run ahead of the host against sessions that wait for every token.

#[path = "support/rig.rs"]
mod rig;
mod support;

use rig::Random;
use support::tiny::Tiny;
use support::{gpu, load, session};
use wgllama::gpu::{Buffers, Choices, Executable, Feed, StepTables};
use wgllama::graph::{Batch, Token};
use wgllama::kernels::sample::Choice;
use wgllama::kernels::{sample, sample_scan};
use wgllama::plan::{Launch, Plan, Resource, SlotId, Work};
use wgllama::shape::padded;
use wgllama::{Context, KvFormat, Model, Sampler, Sampling, Session, SessionOptions};

/// The launches that choose, over a slot of logits of one's own.
struct Chooser {
    run: Executable,
    choices: Choices,
    vocab: usize,
}

impl Chooser {
    fn new(gpu: &Context, vocab: usize, rows: usize) -> Self {
        let caps = gpu.caps();
        let [logits, values, tops] = [0, 1, 2].map(|i| Resource::Slot(SlotId(i)));
        let (choices, counts) = (Resource::Choices, Resource::Counts);
        let launch = |dispatch, bindings| Launch {
            name: "choice".to_string(),
            dispatch,
            bindings,
            weight_bytes: 0,
            work: Work::default(),
        };
        let launches = vec![
            launch(sample_scan::select(vocab, caps), vec![logits, choices, counts, values, tops]),
            launch(sample::select(vocab, caps), vec![values, tops, choices, counts, Resource::Next]),
        ];
        let slots = vec![rows * padded(vocab), rows * padded(vocab), rows * sample::runs(vocab, caps)];
        let mut plan = Plan::bare(launches, slots, rows);
        (plan.options.choose, plan.options.max_outputs, plan.choosing) = (true, rows, 0);
        let choices = Choices::new(gpu, rows, vocab, 2).unwrap();
        let buffers = Buffers {
            weights: &[],
            vectors: &[],
            ropes: &[],
            keys: &[],
            values: &[],
            choices: Some(&choices),
        };
        let run = Executable::bind(gpu, plan, buffers, rows, 1).unwrap();
        Self { run, choices, vocab }
    }

    /// What the device chooses for rows of logits, each a sequence with a position.
    fn choose(&mut self, rows: &[(&[f32], usize)]) -> Vec<u32> {
        let pitch = padded(self.vocab);
        let mut logits = vec![f32::NAN; rows.len() * pitch];
        for ((row, _), place) in rows.iter().zip(logits.chunks_exact_mut(pitch)) {
            place[..self.vocab].copy_from_slice(row);
        }
        self.run.write_slot(SlotId(0), &logits).unwrap();
        let token = |(s, (_, position)): (usize, &(&[f32], usize))| Token {
            id: 0,
            position: *position as u32,
            sequence: s as u32,
        };
        let batch = Batch {
            tokens: rows.iter().enumerate().map(token).collect(),
            outputs: (0..rows.len() as u32).collect(),
        };
        let tables: Vec<_> = (0..rows.len() as u32).map(|s| vec![s]).collect();
        self.run.run_choosing(&batch, StepTables(&tables), Feed::Batch, &mut self.choices).unwrap();
        let mut ids = Vec::new();
        self.choices.take(&mut ids).unwrap();
        ids
    }
}

/// Options of every kind, alone and together.
fn kinds() -> Vec<Sampling> {
    let warm = Sampling { temperature: 0.8, seed: 42, ..Sampling::default() };
    vec![
        Sampling::default(),
        warm.clone(),
        Sampling { top_k: 1, ..warm.clone() },
        Sampling { top_k: 40, ..warm.clone() },
        Sampling { top_p: 0.9, ..warm.clone() },
        Sampling { top_p: 0.2, temperature: 4.0, ..warm.clone() },
        Sampling { min_p: 0.05, ..warm.clone() },
        Sampling { top_k: 1000, top_p: 0.5, min_p: 0.01, seed: 1 << 40 | 3, ..warm.clone() },
        Sampling { top_k: 7, top_p: 0.95, repetition_penalty: 1.3, ..warm.clone() },
        Sampling { presence_penalty: 1.5, frequency_penalty: 0.7, ..Sampling::default() },
        Sampling { repetition_penalty: 1.1, frequency_penalty: -0.2, top_p: 0.7, ..warm },
    ]
}

#[test]
fn the_device_chooses_what_the_host_does() {
    let Some(gpu) = gpu() else { return };
    for vocab in [5, 512, 3001] {
        let mut random = Random::new(vocab as u64);
        let mut chooser = Chooser::new(&gpu, vocab, 1);
        for (kind, options) in kinds().iter().enumerate() {
            let mut host = Sampler::new(options).unwrap();
            let prompt = [1, 3, 3];
            host.start(&prompt);
            let mut counts = vec![0; vocab];
            prompt.iter().for_each(|id| counts[*id as usize] = Choice::IN_PROMPT);
            chooser.choices.set(0, &options.choice(), Some(&counts)).unwrap();
            for position in 0..20 {
                // Some with equals, some with a clear winner, some almost flat.
                let scale = [4.0, 0.01, 12.0][position % 3];
                let mut logits = random.values(vocab);
                logits.iter_mut().for_each(|l| *l = (*l * scale * 64.0).round() / 64.0);
                if position % 5 == 4 {
                    logits[vocab / 2] = f32::NEG_INFINITY;
                }
                let expected = host.sample(&logits, position).unwrap();
                let found = chooser.choose(&[(&logits, position)])[0];
                assert_eq!(found, expected, "vocabulary {vocab}, kind {kind}, position {position}");
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_choose_each_their_own_way() {
    let Some(gpu) = gpu() else { return };
    let vocab = 300;
    let mut random = Random::new(9);
    let kinds = kinds();
    let mut chooser = Chooser::new(&gpu, vocab, kinds.len());
    let mut hosts: Vec<_> = kinds.iter().map(|options| Sampler::new(options).unwrap()).collect();
    for (s, options) in kinds.iter().enumerate() {
        chooser.choices.set(s, &options.choice(), Some(&vec![0; vocab])).unwrap();
    }
    for step in 0..8 {
        let logits: Vec<_> = kinds.iter().map(|_| random.values(vocab)).collect();
        let rows: Vec<_> = logits.iter().enumerate().map(|(s, l)| (&l[..], 3 * s + step)).collect();
        let expected: Vec<_> =
            hosts.iter_mut().zip(&rows).map(|(host, (l, at))| host.sample(l, *at).unwrap()).collect();
        assert_eq!(chooser.choose(&rows), expected);
    }
}

#[test]
fn logits_that_are_no_numbers_are_told() {
    let Some(gpu) = gpu() else { return };
    let vocab = 100;
    let mut chooser = Chooser::new(&gpu, vocab, 1);
    for options in [Sampling::default(), Sampling::default().temperature(1.0)] {
        chooser.choices.set(0, &options.choice(), None).unwrap();
        for bad in [f32::NAN, f32::INFINITY, -f32::NAN] {
            let mut logits = vec![0.5; vocab];
            logits[77] = bad;
            assert_eq!(chooser.choose(&[(&logits, 0)]), [Choice::NOT_A_NUMBER]);
            logits[77] = 1.0;
            assert_eq!(chooser.choose(&[(&logits, 0)]).len(), 1);
        }
    }
}

const PROMPT: [u32; 6] = [1, 70, 71, 80, 70, 71];

fn tiny(gpu: &Context) -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    let model = load(gpu, folder.path());
    (folder, model)
}

fn ahead(model: &Model, ahead: usize, context: usize) -> Session {
    let options = SessionOptions {
        context: Some(context),
        kv: KvFormat::F32,
        chunk: Some(32),
        ahead: Some(ahead),
        ..Default::default()
    };
    model.session(&options).unwrap()
}

fn streamed(session: &mut Session, prompt: &[u32], options: &Sampling) -> Vec<u32> {
    session.generate_ids(prompt, options).unwrap().filter_map(|piece| piece.unwrap().id).collect()
}

#[test]
fn a_stream_writes_what_waiting_for_every_token_would() {
    let Some(gpu) = gpu() else { return };
    let (_folder, model) = tiny(&gpu);
    for options in kinds() {
        let options = Sampling { max_tokens: 40, ..options };
        let mut waiting = session(&model, KvFormat::F32, 128, 32);
        waiting.prefill(&PROMPT).unwrap();
        let mut sampler = Sampler::new(&options).unwrap();
        sampler.start(&PROMPT);
        let end = |id: &u32| model.tokenizer().unwrap().is_end(*id);
        let expected: Vec<u32> =
            (0..40).map(|_| waiting.step(&mut sampler).unwrap()).take_while(|id| !end(id)).collect();
        for steps in [0, 1, 5] {
            let mut session = ahead(&model, steps, 128);
            assert_eq!(streamed(&mut session, &PROMPT, &options), expected, "{options:?}, {steps} ahead");
        }
    }
}

/// What was fed ahead is forgotten: the session goes on as one that never ran ahead.
#[test]
fn a_stream_that_is_dropped_leaves_a_whole_session() {
    let Some(gpu) = gpu() else { return };
    // Without a tokenizer no token ends the text.
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let model = load(&gpu, folder.path());
    let options = Sampling::default().max_tokens(60);
    let whole = streamed(&mut ahead(&model, 0, 256), &PROMPT, &options);
    let mut session = ahead(&model, 4, 256);
    let taken: Vec<_> = session.generate_ids(&PROMPT, &options).unwrap().take(9).collect();
    assert_eq!(taken.len(), 9);
    let fed = [&PROMPT[..], &whole[..8]].concat();
    assert_eq!(session.ids(), fed);
    let rest = streamed(&mut session, &whole[8..9], &Sampling::default().max_tokens(51));
    assert_eq!(rest, whole[9..]);
    // Past the end of a page, and up to the last place of the context.
    let mut small = ahead(&model, 4, 70);
    let long = streamed(&mut small, &PROMPT, &Sampling::default().max_tokens(500));
    assert_eq!(small.ids().len(), 70);
    assert_eq!(long.len(), 70 - PROMPT.len() + 1);
    assert_eq!(long[..60], whole[..]);
}

/// An id that nothing was chosen for, and plans that do not choose.
#[test]
fn choosing_without_a_choice_is_refused() {
    let Some(gpu) = gpu() else { return };
    let mut chooser = Chooser::new(&gpu, 64, 1);
    assert!(chooser.choices.take(&mut Vec::new()).is_err());
    assert!(chooser.choices.set(1, &Sampling::default().choice(), None).is_err());
    assert!(chooser.choices.set(0, &Sampling::default().choice(), Some(&[0; 3])).is_err());
    let batch = Batch::sequence(&[0], 0, 0);
    let tables = [vec![0]];
    for _ in 0..2 {
        chooser.run.run_choosing(&batch, StepTables(&tables), Feed::Batch, &mut chooser.choices).unwrap();
    }
    let more = chooser.run.run_choosing(&batch, StepTables(&tables), Feed::Batch, &mut chooser.choices);
    assert!(more.is_err(), "the ring holds two");
}
