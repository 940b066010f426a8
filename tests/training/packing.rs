use super::*;

/// The batch of a step, and the network that has seen some training.
fn packed(case: &Case) -> (Vec<f32>, Batch, ComposedNetwork) {
    let mut trainer = case.trainer();
    for _ in 0..3 {
        trainer.step().unwrap();
    }
    let batch = trainer.data().batch(&case.config, 9).unwrap();
    let network = ComposedNetwork::new(trainer.shape(), &Device::Cpu).unwrap();
    (trainer.weights().unwrap().to_vec(), batch, network)
}

/// A case whose windows hold several documents each.
fn short_documents(packing: Packing) -> Case {
    let mut case = Case::new();
    let texts: Vec<String> = (0..300).map(|i| text(1) + &text(i % 3 + 1)).collect();
    fs::write(&case.config.data[0], texts.join("\n<|doc|>\n")).unwrap();
    case.config.packing = packing;
    case.config.vocab_size = Some(270);
    case.config.context = 64;
    case
}

#[test]
fn documents_of_a_window_do_not_see_each_other_and_stand_anywhere_in_it() {
    let case = short_documents(Packing::Documents);
    let (weights, batch, mut network) = packed(&case);
    assert!(
        batch.starts.len() > batch.windows(),
        "windows hold several documents"
    );
    // Each document alone, moved to the start of a window, and what follows it in the window.
    let whole = network.loss(&weights, &batch).unwrap() * batch.tokens() as f64;
    let mut alone = 0.0;
    for text in batch.texts() {
        let window = text.start / batch.context;
        let mut part = batch.slice(window..window + 1);
        let first = text.start % batch.context;
        part.clean.rotate_left(first);
        part.noisy.rotate_left(first);
        part.starts = vec![0];
        if text.len() < batch.context {
            part.starts.push(text.len() as u32);
        }
        let moved = |slot: u32| (slot + batch.context as u32 - first as u32) % batch.context as u32;
        part.scored = part.scored.iter().map(|&slot| moved(slot)).collect();
        part.scored.retain(|&slot| (slot as usize) < text.len());
        part.scored.sort_unstable();
        alone += network.loss(&weights, &part).unwrap() * part.tokens() as f64;
    }
    assert!((whole / alone - 1.0).abs() < 1e-5, "{whole} {alone}");
}

#[test]
fn in_a_stream_documents_see_each_other() {
    let [stream, documents] = [Packing::Stream, Packing::Documents].map(|packing| {
        let case = short_documents(packing);
        packed(&case).1
    });
    assert_eq!(stream.clean, documents.clean, "the same windows");
    assert_eq!(stream.noisy, documents.noisy);
    assert_eq!(stream.starts.len(), stream.windows());
    for slot in 1..documents.tokens() {
        // Token 1 ends documents.
        let begins = slot % 64 == 0 || documents.clean[slot - 1] == 1;
        assert_eq!(documents.starts.contains(&(slot as u32)), begins, "{slot}");
    }
}

#[test]
fn a_run_learns_with_either_and_keeps_the_one_it_began_with() {
    for packing in [Packing::Stream, Packing::Documents] {
        let mut case = Case::new();
        case.config.packing = packing;
        let best = case.run().unwrap().progress().best.unwrap();
        assert!(best < 0.7 * 300f64.ln(), "{packing:?}: {best}");
        case.config.resume = true;
        case.config.packing = match packing {
            Packing::Stream => Packing::Documents,
            Packing::Documents => Packing::Stream,
        };
        assert!(case.fails().contains("cannot resume: packing was"));
    }
}

#[test]
fn a_document_longer_than_a_window_is_seen_in_parts() {
    let mut case = Case::new();
    let one = text(1500).replace("\n<|doc|>\n", " ");
    fs::write(&case.config.data[0], &one).unwrap();
    case.config.steps = 1;
    case.config.packing = Packing::Documents;
    let trainer = case.run().unwrap();
    let tokens = trainer.data().train.tokens();
    assert!(tokens.len() > 20 * case.config.context);
    let batch = trainer.data().batch(&case.config, 0).unwrap();
    for window in batch.clean.chunks(case.config.context) {
        assert!(tokens.windows(window.len()).any(|part| part == window));
    }
}
