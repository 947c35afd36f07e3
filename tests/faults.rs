//! What happens when something fails: numbers that are none, memory that runs out, a device that goes. Each is
//! a typed error, nothing of it stays behind, and the process goes on.

mod support;

use std::path::Path;

use safetensors::SafeTensors;
use support::tiny::Tiny;
use support::{gpu, greedy, load, session, session_options};
use wgllama::{Context, ContextOptions, Error, KvFormat, LoadOptions, Model, Sampling, SessionOptions};

/// The test device, opened once more, with no more memory than `memory`.
fn open(memory: Option<u64>) -> Context {
    Context::new(&ContextOptions { memory, ..support::device() }).unwrap()
}

fn tiny() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Tiny::default().write(folder.path()).unwrap();
    folder
}

/// The token whose embedding is too large for what it is multiplied by.
const HUGE: u32 = 7;

/// A tiny model with that token.
fn overflowing() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let shape = Tiny { biases: false, ..Tiny::default() };
    shape.write(folder.path()).unwrap();
    let edit = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = folder.path().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    };
    edit("model.safetensors", &|bytes| {
        let row = shape.hidden * 4;
        let file = SafeTensors::deserialize(bytes).unwrap();
        let table = file.tensor("model.embed_tokens.weight").unwrap();
        let at = table.data().as_ptr() as usize - bytes.as_ptr() as usize + HUGE as usize * row;
        for value in bytes[at..at + row].chunks_exact_mut(4) {
            value.copy_from_slice(&3e38f32.to_le_bytes());
        }
    });
    edit("config.json", &|bytes| {
        let mut config: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        config["model_type"] = "granite".into();
        config["embedding_multiplier"] = 12.0.into();
        *bytes = config.to_string().into_bytes();
    });
    folder
}

fn is_bad(error: &Error, position: usize) -> bool {
    matches!(error, Error::BadLogits { position: found } if *found == position)
}

#[test]
fn logits_that_are_no_numbers_end_their_prompt_and_nothing_else() {
    let Some(gpu) = gpu() else { return };
    let model = load(&gpu, overflowing().path());
    for kv in KvFormat::ALL {
        // In the same steps, so that every sum is in the same order.
        let fresh = |pieces: &[&[u32]]| {
            let mut session = session(&model, kv, 128, 16);
            pieces.iter().for_each(|ids| session.prefill(ids).unwrap());
            session.logits().unwrap().to_vec()
        };
        let mut session = session(&model, kv, 128, 16);
        session.prefill(&[1, 2, 3]).unwrap();
        // One token, and in the middle of a prompt of several steps.
        assert!(is_bad(&session.prefill(&[HUGE]).unwrap_err(), 3));
        let long: Vec<u32> = (10..30).chain([HUGE]).chain(30..60).collect();
        assert!(is_bad(&session.prefill(&long).unwrap_err(), 3 + long.len() - 1));
        assert!(session.prefill_all(&long).is_err());
        assert_eq!(session.ids(), [1, 2, 3]);
        session.prefill(&[4, 5]).unwrap();
        assert_eq!(session.logits().unwrap(), fresh(&[&[1, 2, 3], &[4, 5]]), "{kv}");
        // As a stream, which chooses on the device.
        let mut stream = session.generate_ids(&long, &Sampling::default()).unwrap();
        assert!(is_bad(&stream.next().unwrap().unwrap_err(), 5 + long.len() - 1));
        assert!(stream.next().is_none());
        drop(stream);
        assert_eq!(session.ids(), [1, 2, 3, 4, 5]);
        session.prefill(&[6]).unwrap();
        assert_eq!(session.logits().unwrap(), fresh(&[&[1, 2, 3], &[4, 5], &[6]]), "{kv}");
    }
}

#[test]
fn logits_that_are_no_numbers_end_their_sequence_and_no_other() {
    let Some(gpu) = gpu() else { return };
    let model = load(&gpu, overflowing().path());
    let options = session_options(KvFormat::F16, 128, 16);
    // Steps of the same sizes without any trouble.
    let run = |third: u32| {
        let mut group = model.group(&options, 3).unwrap();
        let prompts: [&[u32]; 3] = [&[1, 2, 3, 4], &[9, 8], &[20, 21, 22]];
        for (sequence, ids) in prompts.iter().enumerate() {
            group.prefill(sequence, ids).unwrap();
        }
        group.feed_each(&[5, third, 6]).unwrap();
        group
    };
    let (expected, mut group) = (run(100), run(HUGE));
    for sequence in [0, 2] {
        assert_eq!(group.logits(sequence).unwrap(), expected.logits(sequence).unwrap());
    }
    assert!(is_bad(&group.logits(1).unwrap_err(), 2));
    assert_eq!(group.ids()[1], [9, 8]);
    // The others go on, and so does the sequence with another token.
    let mut sampler = wgllama::Sampler::new(&Sampling::default()).unwrap();
    let chosen = group.step(&mut sampler).unwrap();
    assert!(chosen[0].is_some() && chosen[1].is_none() && chosen[2].is_some());
    group.feed_some(&[(1, 100)]).unwrap();
    let (found, expected) = (group.logits(1).unwrap(), expected.logits(1).unwrap());
    support::assert_close("a sequence that goes on", found, expected, 1e-4);
    assert!(group.feed_some(&[(0, 1), (0, 2)]).is_err() && group.feed_some(&[(3, 1)]).is_err());
}

/// However little memory there is: an error that names what it was for, and no panic. With more it works, on
/// the same device.
#[test]
fn memory_that_runs_out_is_an_error_wherever_it_does() {
    if gpu().is_none() {
        return;
    }
    let folder = tiny();
    let ids = [1, 70, 71, 101, 5, 9, 200, 77, 31, 4];
    let run = |context: &Context| -> Result<Vec<u32>, Error> {
        let model = Model::load(context, folder.path(), &LoadOptions::default())?;
        let mut session = model.session(&SessionOptions { context: Some(64), ..Default::default() })?;
        session.prefill_all(&ids[..5])?;
        let stream = session.generate_ids(&ids[5..], &Sampling::default().max_tokens(3))?;
        stream.map(|piece| Ok(piece?.id.unwrap_or_default())).collect()
    };
    let expected = run(&open(None)).unwrap();
    let mut named = std::collections::BTreeSet::new();
    let mut memory = 1u64 << 10;
    let found = loop {
        match run(&open(Some(memory))) {
            Ok(found) => break found,
            Err(Error::OutOfMemory { what, need, limit, .. }) => {
                assert!(need > limit, "{what}: {need} of {limit}");
                named.insert(what);
            }
            Err(error) => panic!("{memory} bytes: {error}"),
        }
        memory += memory / 5;
    };
    assert_eq!(found, expected);
    println!("{memory} bytes suffice; less was missing for {named:?}");
    assert!(named.len() >= 4, "{named:?}");

    // A model that was dropped leaves its memory to the next.
    let context = open(Some(memory));
    for _ in 0..3 {
        assert_eq!(run(&context).unwrap(), expected);
    }
}

/// A device that is lost while a prompt is read, while a text is written, and while a model is loaded.
#[test]
fn a_device_that_is_lost_mid_run_is_an_error_and_another_goes_on() {
    if gpu().is_none() {
        return;
    }
    let folder = tiny();
    let ids: Vec<u32> = (0..60).map(|i| i * 3 % 250).collect();
    let lost = |error: Error| assert!(matches!(error, Error::DeviceLost { .. }), "{error}");

    let context = open(None);
    let mut reading = session(&load(&context, folder.path()), KvFormat::F16, 128, 16);
    let mut seen = 0;
    let took = reading.prefill_with(&ids, |_| {
        seen += 1;
        if seen == 2 {
            context.destroy();
        }
        Ok(())
    });
    lost(took.unwrap_err());
    lost(reading.prefill(&ids).unwrap_err());
    lost(reading.capture(&ids[..3], &["embed"]).unwrap_err());

    let context = open(None);
    let mut writing = session(&load(&context, folder.path()), KvFormat::F16, 128, 16);
    let mut stream = writing.generate_ids(&ids, &Sampling::default().max_tokens(60)).unwrap();
    for _ in 0..5 {
        stream.next().unwrap().unwrap();
    }
    context.destroy();
    // What was under way may still arrive.
    lost(stream.find_map(|piece| piece.err()).unwrap());
    drop(stream);
    lost(writing.prefill(&[1]).unwrap_err());

    let context = open(None);
    context.destroy();
    lost(Model::load(&context, folder.path(), &LoadOptions::default()).err().unwrap());

    let context = open(None);
    let mut again = session(&load(&context, folder.path()), KvFormat::F16, 128, 16);
    assert_eq!(greedy(&mut again, &ids, 4).len(), 4);
}

/// What is told to be a model, and is none, is refused before a device is asked for anything.
#[test]
fn what_is_no_model_allocates_nothing() {
    if gpu().is_none() {
        return;
    }
    let context = open(Some(0));
    for path in ["no/such/folder", file!()] {
        let error = Model::load(&context, Path::new(path), &LoadOptions::default()).err().unwrap();
        assert!(!matches!(error, Error::OutOfMemory { .. }), "{path}: {error}");
    }
}
