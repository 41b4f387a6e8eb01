//! Every layout read equal to what Python reads (python/fixtures/pairs.py), and what is done about bad rows.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use seedpo_data::{Fitted, Options, PairWriter, Pairs, Prefetch, Reason, picture};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pairs")
}

fn expected() -> Value {
    serde_json::from_str(&fs::read_to_string(fixtures().join("expected.json")).unwrap()).unwrap()
}

/// All bad rows are passed over.
fn lenient() -> Options {
    Options { bad_rows_limit: 1.0, ..Options::default() }
}

/// Prompt and SHA-256 of both pictures of every pair.
fn listed(pairs: &Pairs) -> Vec<[String; 3]> {
    let sha = |id| Sha256::digest(pairs.bytes(id).unwrap()).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let one = |index| {
        let pair = pairs.pair(index);
        [pair.prompt.to_owned(), sha(pair.winner), pair.loser.map(sha).unwrap_or_default()]
    };
    (0..pairs.len()).map(one).collect()
}

#[test]
fn every_layout_is_read_as_python_reads_it() {
    let expected = expected();
    let mut read = 0;
    for (name, wanted) in expected.as_object().unwrap().iter().filter(|(name, _)| *name != "made by") {
        let pairs = Pairs::open(&fixtures().join(name), &lenient()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found = serde_json::to_value(listed(&pairs)).unwrap();
        assert_eq!(found, wanted["pairs"], "{name}");
        let report = pairs.report();
        let counts = [("ties", report.ties), ("rows", report.rows), ("bad", report.bad_rows())];
        for (key, count) in counts {
            assert_eq!(count, wanted[key], "{key} of {name}");
        }
        assert_eq!(report.pairs as usize, pairs.len());
        read += 1;
    }
    assert_eq!(read, 9);
}

#[test]
fn only_one_generators_pairs() {
    let options = Options { generator: "DREAM".into(), ..Options::default() };
    let pairs = Pairs::open(&fixtures().join("pickapic_v1"), &options).unwrap();
    assert_eq!(serde_json::to_value(listed(&pairs)).unwrap(), expected()["pickapic_v1/train.parquet"]["dreamlike"]);
    assert_eq!(pairs.report().other_generators, 5);
    let none = Options { generator: "nobody".into(), ..Options::default() };
    let message = Pairs::open(&fixtures().join("pickapic_v1"), &none).unwrap_err().to_string();
    assert!(message.contains("11 of other generators"), "{message}");
}

#[test]
fn ties_are_kept_where_they_are_wanted() {
    let open = |ties| {
        let options = Options { ties, ..lenient() };
        Pairs::open(&fixtures().join("pickapic_v1"), &options).unwrap()
    };
    let (without, with) = (open(false), open(true));
    let ties = (0..with.len()).filter(|&i| with.pair(i).tie).count();
    assert_eq!(ties as u64, with.report().ties);
    assert_eq!(with.len(), without.len() + ties);
    assert!(ties > 0 && (0..without.len()).all(|i| !without.pair(i).tie));
    // The file's own count; where there is none, the pairs of each prompt.
    assert!(with.examples_per_prompt().iter().all(|&examples| examples == 1));
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixtures().join("imagefolder/w0.png"), folder.path().join("a.png")).unwrap();
    let line = |prompt: &str| format!("{{\"prompt\": \"{prompt}\", \"winner\": \"a.png\", \"loser\": \"a.png\"}}\n");
    fs::write(folder.path().join("pairs.jsonl"), ["x", "y", "x"].map(line).concat()).unwrap();
    assert_eq!(Pairs::open(folder.path(), &lenient()).unwrap().examples_per_prompt(), [2, 1, 2]);
}

#[test]
fn winners_alone_for_fine_tuning() {
    let options = Options { winners_only: true, ..lenient() };
    let all = Pairs::open(&fixtures().join("imagefolder"), &options).unwrap();
    // Of the scored prompt its best picture only, once.
    let found: Vec<_> = listed(&all).into_iter().map(|[prompt, _, loser]| (prompt, loser)).collect();
    let wanted = ["text 0", "text 1", "text 2", "scored"].map(|p| (p.to_owned(), String::new()));
    assert_eq!(found, wanted);
    // Plain winners do for fine-tuning, and are named as bad rows where a loser is needed.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixtures().join("imagefolder/w0.png"), folder.path().join("a.png")).unwrap();
    fs::write(folder.path().join("metadata.jsonl"), "{\"file_name\": \"a.png\", \"text\": \"x\"}\n").unwrap();
    assert_eq!(Pairs::open(folder.path(), &options).unwrap().len(), 1);
    let message = Pairs::open(folder.path(), &Options::default()).unwrap_err().to_string();
    assert!(message.contains("metadata.jsonl line 1") && message.contains("loser"), "{message}");
}

#[test]
fn bad_rows_are_counted_by_reason_and_stop_above_the_limit() {
    let pairs = Pairs::open(&fixtures().join("pickapic_v2"), &lenient()).unwrap();
    let bad = &pairs.report().bad;
    assert_eq!((bad[&Reason::NoLabel].count, bad[&Reason::NoPrompt].count), (2, 1));
    assert_eq!(bad[&Reason::NoLabel].examples[0].place, "train-00000-of-00002.parquet row 1");
    let message = Pairs::open(&fixtures().join("pickapic_v2"), &Options::default()).unwrap_err().to_string();
    for part in ["3 of 12 rows are bad", "1 %", "2: no label", "row 3: label_0: expected 0, 0.5 or 1, found 0.3"] {
        assert!(message.contains(part), "{part:?} not in {message}");
    }
    let limit = |bad_rows_limit| Options { bad_rows_limit, ..Options::default() };
    assert!(Pairs::open(&fixtures().join("pickapic_v2"), &limit(0.25)).is_ok());
    assert!(Pairs::open(&fixtures().join("pickapic_v2"), &limit(0.24)).is_err());
}

#[test]
fn lines_of_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::copy(fixtures().join("imagefolder/w0.png"), folder.path().join(format!("{name}.png"))).unwrap();
    }
    let lines = [
        r#"{"prompt": "x", "winner": "a.png", "loser": "b.png"}"#,
        r#"{"caption": "x", "chosen": "b.png", "rejected": "a.png"}"#,
        r#"{"text": "y", "image_0": "a.png", "image_1": "b.png", "label_0": 0}"#,
        r#"{"text": "y", "image_0": "a.png", "image_1": "b.png", "label_0": 0.5}"#,
        r#"{"prompt": "z", "images": ["a.png", "b.png", "c.png"], "scores": [1, 3, 2]}"#,
        "",
        "{",
        "[1]",
        r#"{"prompt": "x", "winner": "gone.png", "loser": "b.png"}"#,
        r#"{"prompt": " ", "winner": "a.png", "loser": "b.png"}"#,
        r#"{"prompt": 3, "winner": "a.png", "loser": "b.png"}"#,
        r#"{"prompt": "x", "images": ["a.png"], "scores": [1, 3]}"#,
        r#"{"prompt": "x", "images": ["a.png", "b.png"]}"#,
        r#"{"prompt": "x", "winner": "a.png"}"#,
    ];
    let file = folder.path().join("pairs.jsonl");
    fs::write(&file, format!("\u{feff}{}\n", lines.join("\n"))).unwrap();
    let pairs = Pairs::open(folder.path(), &lenient()).unwrap();
    let stems = |index: usize| {
        let pair = pairs.pair(index);
        let stem = |id| pairs.file(id).unwrap().file_stem().unwrap().to_string_lossy().into_owned();
        format!("{}{}{}", pair.prompt, stem(pair.winner), stem(pair.loser.unwrap()))
    };
    assert_eq!((0..6).map(stems).collect::<Vec<_>>(), ["xab", "xba", "yba", "zba", "zca", "zbc"]);
    let report = pairs.report();
    assert_eq!((report.rows, report.ties, report.pairs, report.bad_rows()), (13, 1, 6, 8));
    let count = |reason| report.bad[&reason].count;
    assert_eq!((count(Reason::WrongType), count(Reason::NoPrompt), count(Reason::MissingPicture)), (4, 1, 1));
    assert_eq!((count(Reason::NoLabel), count(Reason::NoLoser)), (1, 1));
    // Two pairs of x, one of y, three of z: every prompt counts the same, the mean is 1.
    let weights = pairs.prompt_weights();
    assert_eq!(weights, [1.0, 1.0, 2.0, 2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0]);
}

/// The best of a ranking is the best of the generator asked for, wherever another generator's picture stands.
#[test]
fn the_winner_of_one_generator() {
    let folder = tempfile::tempdir().unwrap();
    let line =
        r#"{"prompt": "z", "images": ["a.png", "b.png", "c.png"], "scores": [1, 3, 2], "models": ["sd", "mj", "sd"]}"#;
    fs::write(folder.path().join("pairs.jsonl"), line).unwrap();
    for name in ["a", "b", "c"] {
        fs::copy(fixtures().join("imagefolder/w0.png"), folder.path().join(format!("{name}.png"))).unwrap();
    }
    let options = Options { generator: "sd".into(), winners_only: true, ..Options::default() };
    let pairs = Pairs::open(folder.path(), &options).unwrap();
    assert_eq!(pairs.len(), 1);
    assert!(pairs.file(pairs.pair(0).winner).unwrap().ends_with("c.png"));
}

#[test]
fn what_is_no_dataset_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path| Pairs::open(path, &Options::default()).unwrap_err().to_string();
    assert!(refused(&folder.path().join("none")).contains("none"));
    assert!(refused(folder.path()).contains("found nothing"));
    let file = folder.path().join("x.csv");
    fs::write(&file, "a,b,c").unwrap();
    assert!(refused(&file).contains("begins \"a,b,c\"") && refused(folder.path()).contains("found x.csv"));
    fs::write(&file, "").unwrap();
    assert!(refused(&file).contains("empty file"));
    fs::write(&file, "[{\"prompt\": \"x\"},").unwrap();
    assert!(refused(&file).contains("JSON list"));
    fs::write(&file, "PAR1PAR1").unwrap();
    assert!(refused(&file).contains("whole parquet file"));
}

/// A parquet file cut anywhere or with any byte changed is refused or read; it never panics.
#[test]
fn damaged_parquet_files_never_panic() {
    let whole = fs::read(fixtures().join("pickapic_v1/train.parquet")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.parquet");
    let mut refused = 0;
    let mut attempt = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        match Pairs::open(&file, &lenient()) {
            Ok(pairs) => (0..pairs.len()).for_each(|i| drop(Fitted::read(&pairs, i, 8))),
            Err(_) => refused += 1,
        }
    };
    (0..whole.len()).step_by(97).for_each(|end| attempt(&whole[..end]));
    let mut state = 1u64;
    for _ in 0..600 {
        let mut damaged = whole.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 33) as usize % whole.len();
            damaged[at] ^= 1 << (state % 8);
        }
        attempt(&damaged);
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn pictures_fit_as_pillow_makes_them() {
    let cases: Value = serde_json::from_str(&fs::read_to_string(fixtures().join("fit.json")).unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let bytes = |key: &str| -> Vec<u8> { serde_json::from_value(case[key].clone()).unwrap() };
        let number = |key: &str| case[key].as_u64().unwrap() as u32;
        let whole = image::RgbImage::from_raw(number("width"), number("height"), bytes("pixels")).unwrap();
        let fitted = picture::fit(&whole, number("size")).unwrap();
        let off = fitted.as_raw().iter().zip(bytes("fitted")).map(|(a, b)| a.abs_diff(b)).max().unwrap();
        assert!(off <= 1 && fitted.dimensions() == (16, 16), "{}x{}: {off}", number("width"), number("height"));
    }
}

#[test]
fn what_is_decoded_ahead_is_what_is_read_here() {
    let pairs = Arc::new(Pairs::open(&fixtures().join("pickapic_v1"), &Options::default()).unwrap());
    let order = [3, 1, 4, 1, 5, 0, 2, 6, 5, 3];
    let here: Vec<_> = order.iter().map(|&i| Fitted::read(&pairs, i, 8).unwrap()).collect();
    for (workers, bytes) in [(0, 0), (1, 0), (2, 0), (3, 1 << 20)] {
        let ahead = Prefetch::new(Arc::clone(&pairs), 8, workers, bytes);
        ahead.ask(order[..4].iter().copied());
        ahead.ask(order[4..].iter().copied());
        let taken: Vec<_> = order.iter().map(|&i| ahead.take(i).unwrap()).collect();
        assert_eq!(taken, here, "{workers} workers, {bytes} bytes");
        // Not asked for: read here.
        assert_eq!(ahead.take(6).unwrap(), here[7]);
    }
}

#[test]
fn written_pairs_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |source: &Pairs, name: &str| {
        let target = folder.path().join(name);
        let mut writer = PairWriter::create(&target).unwrap();
        for index in 0..source.len() {
            assert_eq!(writer.add(source, &source.pair(index).into()).unwrap(), None);
        }
        assert_eq!(writer.finish().unwrap() as usize, source.len());
        Pairs::open(&target, &Options::default()).unwrap()
    };
    let first = Pairs::open(&fixtures().join("pickapic_v1"), &Options::default()).unwrap();
    let lines = copy(&first, "a.jsonl");
    let back = copy(&lines, "b.parquet");
    assert_eq!((listed(&lines), listed(&back)), (listed(&first), listed(&first)));
    let names = || fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names(), 3, "a.jsonl, a-images, b.parquet");
    assert!(PairWriter::create(&folder.path().join("a.jsonl")).err().unwrap().to_string().contains("not overwritten"));
    assert!(PairWriter::create(&folder.path().join("a.csv")).err().unwrap().to_string().contains(".jsonl or .parquet"));
    drop(PairWriter::create(&folder.path().join("c.jsonl")).unwrap());
    assert_eq!(names(), 3, "nothing half-written is left");
}

/// Scored pictures in rows of their own are compared within their prompt, whatever their other captions are.
#[test]
fn scored_pictures_of_a_prompt_make_pairs_whatever_else_they_are_called() {
    let folder = tempfile::tempdir().unwrap();
    let row = |name: &str, text: &str, score: u32| {
        image::RgbImage::from_pixel(8, 8, image::Rgb([9; 3])).save(folder.path().join(name)).unwrap();
        format!(r#"{{"file_name": "{name}", "text": {text}, "score": {score}}}"#) + "\n"
    };
    let rows = [
        row("a.png", r#"["a lake", "x", "water"]"#, 1),
        row("other.png", r#"["two cats", "x"]"#, 3),
        row("b.png", r#"["a lake", "water", "y"]"#, 2),
        row("plain.png", r#""a lake""#, 0),
        row("c.png", r#"["a lake", "y"]"#, 4),
    ];
    fs::write(folder.path().join("metadata.jsonl"), rows.concat()).unwrap();
    let found = |winners_only| {
        let pairs = Pairs::open(folder.path(), &Options { winners_only, ..lenient() }).unwrap();
        let name = |id| pairs.file(id).unwrap().file_stem().unwrap().to_string_lossy().into_owned();
        let of = |index| {
            let pair = pairs.pair(index);
            let names = [Some(pair.winner), pair.loser].into_iter().flatten().map(name).collect::<Vec<_>>();
            format!("{}: {} {:?}", pair.prompt, names.join(" over "), pair.captions)
        };
        (0..pairs.len()).map(of).collect::<Vec<_>>()
    };
    // Of a pair the captions that both pictures have.
    let expected = [
        r#"a lake: b over a ["a lake", "water"]"#,
        "a lake: a over plain []",
        "a lake: c over a []",
        "a lake: b over plain []",
        r#"a lake: c over b ["a lake", "y"]"#,
        "a lake: c over plain []",
    ];
    assert_eq!(found(false), expected);
    // The best of a prompt with its own; one that is alone counts as its prompt's best.
    assert_eq!(found(true), [r#"a lake: c ["a lake", "y"]"#, r#"two cats: other ["two cats", "x"]"#]);
}

/// A list of captions is read, and written as lines; a parquet file has no room for it.
#[test]
fn several_captions_of_the_same_pictures() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.png", "b.png"] {
        image::RgbImage::from_pixel(8, 8, image::Rgb([9; 3])).save(folder.path().join(name)).unwrap();
    }
    let row = |prompt: &str| format!(r#"{{"prompt": {prompt}, "winner": "a.png", "loser": "b.png"}}"#) + "\n";
    let file = folder.path().join("pairs.jsonl");
    fs::write(
        &file,
        [r#"["x", "y"]"#, r#""z""#, r#"["x", "other"]"#, "[]", r#"["x", 3]"#, r#"["x", " "]"#].map(row).concat(),
    )
    .unwrap();
    let pairs = Pairs::open(&file, &lenient()).unwrap();
    let captions =
        |pairs: &Pairs, index| pairs.pair(index).captions.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(listed(&pairs).iter().map(|[prompt, ..]| prompt.as_str()).collect::<Vec<_>>(), ["x", "z", "x"]);
    // The captions of one pair of pictures are not those of another whose first caption is the same.
    assert_eq!([0, 1, 2].map(|index| captions(&pairs, index)), [vec!["x", "y"], vec![], vec!["x", "other"]]);
    assert_eq!(pairs.report().bad_rows(), 3);
    let write = |name: &str| {
        let mut writer = PairWriter::create(&folder.path().join(name)).unwrap();
        writer.add(&pairs, &pairs.pair(0).into())?;
        writer.finish()
    };
    write("again.jsonl").unwrap();
    let again = Pairs::open(&folder.path().join("again.jsonl"), &lenient()).unwrap();
    assert_eq!(captions(&again, 0), ["x", "y"]);
    assert!(write("again.parquet").unwrap_err().to_string().contains("several"));
}
