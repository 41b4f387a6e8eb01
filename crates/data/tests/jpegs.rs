//! JPEG pictures of every usual kind as Pillow reads them (python/fixtures/jpegs.py).

use std::fs;
use std::path::{Path, PathBuf};

use seedpo_data::picture::decode;

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpegs");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|suffix| suffix == "jpg")).collect();
    assert_eq!(files.len(), 18);
    files
}

#[test]
fn pixels_equal_pillows() {
    for file in files() {
        let found = decode(&fs::read(&file).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let expected = decode(&fs::read(file.with_extension("png")).unwrap()).unwrap();
        assert!(found == expected, "{}", file.display());
    }
}

/// As Pillow does; libjpeg by itself fills up with grey.
#[test]
fn a_file_that_is_cut_short_is_refused() {
    for file in files() {
        let whole = fs::read(&file).unwrap();
        for end in (4..whole.len()).step_by(7).chain([whole.len() - 2, whole.len() - 1]) {
            let reason = decode(&whole[..end]).map(|_| ()).expect_err(&format!("{}, {end}", file.display()));
            assert!(reason.contains("cut short"), "{}, {end}: {reason}", file.display());
        }
        // What lies behind the end is not looked at.
        assert!(decode(&[&whole[..], b"behind"].concat()).is_ok());
    }
}

#[test]
fn damaged_files_and_huge_promises_never_panic() {
    let (mut read, mut refused, mut state) = (0, 0, 1u64);
    for file in files() {
        let whole = fs::read(&file).unwrap();
        for _ in 0..200 {
            let mut damaged = whole.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (state >> 33) as usize % whole.len();
                damaged[at] ^= 1 << (state % 8);
            }
            match decode(&damaged) {
                Ok(_) => read += 1,
                Err(reason) => refused += i32::from(!reason.is_empty()),
            }
        }
        let header = whole.windows(2).position(|two| matches!(two, [0xFF, 0xC0 | 0xC2])).unwrap();
        for side in [20_000u16, 15_000] {
            let mut huge = whole.clone();
            huge[header + 5..header + 7].copy_from_slice(&side.to_be_bytes());
            huge[header + 7..header + 9].copy_from_slice(&side.to_be_bytes());
            let reason = decode(&huge).unwrap_err();
            assert!(reason.contains("512 MiB") && reason.contains(&format!("{side} x {side}")), "{reason}");
        }
    }
    assert!(read > 100 && refused > 100, "{read} {refused}");
}
