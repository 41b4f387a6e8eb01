//! Files that `torch.save` wrote, read without executing anything; fixtures by `python/fixtures/torch_files.py`.

#[path = "common/torch_zip.rs"]
mod torch_zip;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use seedpo_tensor::{Error, WeightFile};
use torch_zip::{archive, text};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn every_format_gives_the_tensors_that_torch_saved() {
    let expected = WeightFile::open(&fixture("expected.safetensors")).unwrap();
    for name in ["zip.pt", "legacy.pt", "protocol4.pt"] {
        let file = WeightFile::open(&fixture(name)).unwrap();
        let (found, wanted): (Vec<_>, Vec<_>) = (file.names().collect(), expected.names().collect());
        assert_eq!(found, wanted, "{name}");
        for tensor in expected.names() {
            let (read, wanted) = (file.tensor(tensor).unwrap(), expected.tensor(tensor).unwrap());
            assert_eq!(file.shape(tensor), expected.shape(tensor), "{name}: {tensor}");
            assert_eq!((read.kind(), read.size()), (wanted.kind(), wanted.size()), "{name}: {tensor}");
            assert_eq!(read, wanted, "{name}: {tensor}");
        }
    }
}

#[test]
fn of_a_checkpoint_the_state_dict_is_read() {
    let file = WeightFile::open(&fixture("lightning.ckpt")).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["bias", "weight"]);
    assert_eq!(file.tensor("weight").unwrap().double_value(&[1, 1]), 1.0);
    let metadata = file.metadata();
    assert_eq!((metadata["epoch"].as_str(), metadata["pytorch-lightning_version"].as_str()), ("1", "1.4.2"));
}

/// The pickles before the object in the old format: magic number, version, and a system that is little-endian.
const LEGACY_START: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00X\x0d\x00\x00\x00little_endianq\x01\x88s.";

fn legacy(pickle: &[u8]) -> Vec<u8> {
    [LEGACY_START, pickle, b"\x80\x02]."].concat()
}

fn open_in(folder: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Vec<i64>>, Error> {
    let path = folder.join("weights.pt");
    // A new file each time: some file systems write a file that is cut to nothing out to the disk at once.
    let _ = fs::remove_file(&path);
    fs::write(&path, bytes).unwrap();
    let file = WeightFile::open(&path)?;
    file.tensors()?.into_iter().map(|(name, tensor)| Ok((name, tensor.size()))).collect()
}

fn message(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let message = open_in(folder.path(), bytes).expect_err("it was read").to_string();
    assert!(message.contains("weights.pt"), "{message}");
    message
}

#[test]
fn a_pickle_that_runs_code_is_refused_by_name_and_runs_none() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("ran");
    let touch = format!("touch {}", mark.display());
    let call = |global: &[u8], argument: &str| [b"\x80\x02", global, &text(argument), b"\x85R."].concat();
    let python = format!("__import__('os').system('{touch}')");
    let cases = [
        (call(b"cos\nsystem\n", &touch), "os.system"),
        (call(b"cposix\nsystem\n", &touch), "posix.system"),
        (call(b"csubprocess\ncheck_output\n", &touch), "subprocess.check_output"),
        (call(b"cbuiltins\neval\n", &python), "builtins.eval"),
        (call(b"c__builtin__\nexec\n", &python), "__builtin__.exec"),
        (call(b"crunpy\n_run_code\n", &python), "runpy._run_code"),
        (call(&[text("torch.serialization"), text("os.system"), b"\x93".to_vec()].concat(), &touch), "os.system"),
        ([b"(", text(&touch).as_slice(), b"ios\nsystem\n."].concat(), "os.system"),
        ([b"(cos\nsystem\n", text(&touch).as_slice(), b"o."].concat(), "os.system"),
        // Hidden behind tensors, in a key, and as an object's state.
        ([b"\x80\x02}X\x01\x00\x00\x00a", &call(b"cos\npopen\n", &touch)[2..], b"s."].concat(), "os.popen"),
    ];
    for (pickle, name) in cases {
        for bytes in [legacy(&pickle), archive(&[("data.pkl", &pickle), ("byteorder", b"little")])] {
            let found = message(&bytes);
            assert!(found.contains(name) && found.contains("nothing was run"), "{found}");
        }
    }
    assert!(!mark.exists());
}

#[test]
fn unknown_classes_have_no_content_and_hide_nothing() {
    // {"a": Unknown(b"...") with state {"x": 1}, "n": numpy.core.multiarray.scalar("f8", b""), 1: getattr(...)}
    let pickle = b"\x80\x02}(X\x01\x00\x00\x00acmy.module\nThing\n)\x81}X\x01\x00\x00\x00xK\x01sbX\x01\x00\x00\x00ncnumpy.core.multiarray\nscalar\nX\x02\x00\x00\x00f8C\x00\x86RK\x01cbuiltins\ngetattr\nK\x01K\x02\x86Ru.";
    let found = message(&archive(&[("data.pkl", pickle)]));
    assert!(found.contains("expected tensors in a dictionary, found none"), "{found}");
}

/// `{"w": tensor}` of f32 in storage `0` of `count` elements.
fn one_tensor(count: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let int = |n: i32| [b"J".as_slice(), &n.to_le_bytes()].concat();
    let tuple = |list: &[i32]| [b"(".to_vec(), list.iter().flat_map(|n| int(*n)).collect(), b"t".to_vec()].concat();
    let mut out = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu".to_vec();
    out.extend([int(count), b"tQ".to_vec(), int(offset), tuple(shape), tuple(strides), b"\x89NtRs.".to_vec()].concat());
    out
}

#[test]
fn claims_beyond_the_bytes_are_refused() {
    let data = [0u8; 24];
    let read = |pickle: &[u8]| archive(&[("data.pkl", pickle), ("data/0", &data)]);
    let folder = tempfile::tempdir().unwrap();
    let sizes = open_in(folder.path(), &read(&one_tensor(6, 1, &[2, 2], &[2, 1]))).unwrap();
    assert_eq!(sizes["w"], [2, 2]);
    for (offset, shape, strides) in [
        (0, vec![7], vec![1]),
        (6, vec![1], vec![1]),
        (-1, vec![1], vec![1]),
        (0, vec![2, 2], vec![i32::MAX, i32::MAX]),
        (0, vec![i32::MAX, i32::MAX, i32::MAX], vec![0, 0, 0]),
        (0, vec![i32::MAX], vec![0]),
        (0, vec![-2], vec![1]),
        (0, vec![2], vec![-1]),
        (0, vec![2, 2], vec![1]),
    ] {
        let found = message(&read(&one_tensor(6, offset, &shape, &strides)));
        assert!(found.contains("`w`"), "{found}");
    }
    assert!(
        message(&archive(&[("data.pkl", &one_tensor(6, 0, &[6], &[1]))])).contains("storage `0` is not in the file")
    );
    let old = legacy(&one_tensor(6, 0, &[6], &[1]));
    let keys = [&old[..old.len() - 1], b"X\x01\x00\x00\x000a."].concat();
    for claim in [6i64, -1, i64::MAX] {
        let bytes = [keys.as_slice(), &claim.to_le_bytes(), &[0; 20]].concat();
        assert!(message(&bytes).contains("storage `0`"), "{claim}");
    }
    let whole = [keys.as_slice(), &6i64.to_le_bytes(), &[0; 24]].concat();
    assert_eq!(open_in(folder.path(), &whole).unwrap()["w"], [6]);
}

#[test]
fn other_archives_and_byte_orders_are_named() {
    assert!(message(&archive(&[("readme", b"hello")])).contains("data.pkl"));
    let pickle = one_tensor(1, 0, &[1], &[1]);
    let big = archive(&[("data.pkl", &pickle), ("byteorder", b"big"), ("data/0", &[0; 4])]);
    assert!(message(&big).contains("`big`"));
    assert!(message(&legacy(b"\x80\x02\x82\x01.")).contains("0x82"));
}

#[test]
fn nesting_and_sharing_cost_neither_stack_nor_time() {
    let deep = [
        b"\x80\x02".to_vec(),
        b"}X\x01\x00\x00\x00a".repeat(100_000),
        b"N".to_vec(),
        b"s".repeat(100_000),
        b".".to_vec(),
    ];
    assert!(message(&legacy(&deep.concat())).contains("nested"));
    // Each dictionary holds the one before twice: 2^100 paths.
    let mut shared = b"\x80\x02}q\x00".to_vec();
    for level in 0..100u8 {
        shared.extend(
            [b"}(X\x01\x00\x00\x00ah", &[level][..], b"X\x01\x00\x00\x00bh", &[level], b"uq", &[level + 1]].concat(),
        );
    }
    shared.push(b'.');
    message(&legacy(&shared));
    // One long list made into a dictionary, and one tuple passed as arguments, again and again.
    let pairs = [b"](".to_vec(), b"K\x01K\x02\x86".repeat(50_000), b"eq\x00\x85q\x01".to_vec()].concat();
    let calls = b"ccollections\nOrderedDict\nh\x01R0".repeat(50_000);
    assert!(message(&legacy(&[b"\x80\x02", pairs.as_slice(), &calls, b"."].concat())).contains("copies"));
    let tuple = [b"(".to_vec(), b"N".repeat(300_000), b"tq\x01".to_vec()].concat();
    let calls = b"cmy\nthing\nh\x01R0".repeat(50_000);
    message(&legacy(&[b"\x80\x02", tuple.as_slice(), &calls, b"."].concat()));
}

#[test]
fn claimed_lengths_beyond_the_file_cost_no_memory() {
    // Texts, bytes, long integers and a frame that say they are 4 GB, 8 EB or all of memory.
    for (code, width) in [(b'X', 4), (b'T', 4), (b'B', 4), (0x8b, 4), (0x8d, 8), (0x8e, 8), (0x96, 8)] {
        for claim in [u64::from(u32::MAX) - 1, u64::from(i32::MAX as u32), i64::MAX as u64, u64::MAX] {
            let pickle = [b"\x80\x04".as_slice(), &[code], &claim.to_le_bytes()[..width], b"abc."].concat();
            for bytes in [legacy(&pickle), archive(&[("data.pkl", &pickle)])] {
                message(&bytes);
            }
        }
    }
    let memo = [b"\x80\x02}r".as_slice(), &u32::MAX.to_le_bytes(), b"."].concat();
    message(&legacy(&memo));
}

#[test]
fn every_truncation_is_refused() {
    for name in ["zip.pt", "legacy.pt"] {
        let whole = fs::read(fixture(name)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for length in (0..whole.len()).step_by(7) {
            let found = open_in(folder.path(), &whole[..length]).expect_err("a part of a file was read");
            assert!(found.to_string().contains("weights.pt"), "{found}");
        }
    }
}

/// One file overwritten again and again: ten thousand temporary folders would take the time.
fn try_bytes(bytes: &[u8]) {
    thread_local!(static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap());
    FOLDER.with(|folder| drop(open_in(folder.path(), bytes)));
}

/// Instructions of the machine, so that random programs get further than random bytes.
const OPS: &[u8] = b".(012NIJKMFGSVTUXBCpqrghjcioQRbadesu)]}lt\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn changed_bytes_never_panic(
        which in 0usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = fs::read(fixture(["zip.pt", "legacy.pt", "lightning.ckpt"][which])).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        try_bytes(&bytes);
    }

    #[test]
    fn changed_pickles_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), prop::sample::select(OPS)), 1..8),
    ) {
        let mut pickle = one_tensor(6, 1, &[2, 2], &[2, 1]);
        for (at, value) in changes {
            let at = at.index(pickle.len());
            pickle[at] = value;
        }
        try_bytes(&legacy(&pickle));
    }

    #[test]
    fn random_programs_never_panic(
        program in proptest::collection::vec(prop_oneof![4 => prop::sample::select(OPS), 1 => any::<u8>()], 0..120),
    ) {
        try_bytes(&legacy(&program));
        try_bytes(&archive(&[("data.pkl", &program)]));
    }
}
