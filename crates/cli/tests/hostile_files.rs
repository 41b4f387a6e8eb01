//! Torch files that claim, nest or pack more than memory holds, opened by the binary with little memory to be had.
#![cfg(target_os = "linux")]

mod common;
#[path = "../../tensor/tests/common/torch_zip.rs"]
mod torch_zip;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::Room;
use seedpo_tensor::{Device, Kind, Tensor};
use torch_zip::{archive, text, torch_file};

/// KiB of addresses: the libraries take half of it, and what is left is far less than any of these files claims.
const ADDRESSES: usize = 1_000_000;

/// What `seedpo` says on standard error and its exit code, with so little memory.
fn limited(room: &Room, arguments: &str) -> (Option<i32>, String) {
    let line = format!("ulimit -v {ADDRESSES}; exec '{}' --dtype f32 {arguments}", env!("CARGO_BIN_EXE_seedpo"));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &line]).current_dir(room.path("")).env("OMP_NUM_THREADS", "1");
    let output = shell.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The file is refused by name, quickly, and not for want of memory.
fn refuses(what: &str, bytes: &[u8], needle: &str) {
    let room = Room::new();
    room.write("file.pt", bytes);
    for command in
        ["adapter inspect file.pt", "sample --prompt a --model file.pt", "score --judge aesthetic=file.pt model"]
    {
        if command.starts_with("score") {
            // A picture to score, so that the judge is what fails.
            let pixels = Tensor::zeros([8, 8, 3], (Kind::Uint8, Device::Cpu));
            seedpo_evaluate::png::write_png(&room.path("model/a.png"), &pixels, &[]).unwrap();
        }
        let begun = Instant::now();
        let (code, message) = limited(&room, command);
        assert_eq!(code, Some(2), "{what}, {command}: {message}");
        assert!(message.contains("file.pt") && message.contains(needle), "{what}, {command}: {message}");
        for unwanted in ["a bug in seedpo", "memory", "panicked"] {
            assert!(!message.contains(unwanted), "{what}, {command}: {message}");
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}, {command}: {:?}", begun.elapsed());
    }
}

fn pickled(program: &[&[u8]]) -> Vec<u8> {
    archive(&[("data.pkl", &[b"\x80\x04", program.concat().as_slice()].concat()), ("byteorder", b"little")])
}

#[test]
fn the_limit_leaves_room_for_a_sound_file() {
    let room = Room::new();
    let tensor = Tensor::ones([16, 4], (Kind::Float, Device::Cpu));
    room.write("file.pt", torch_file(&BTreeMap::from([("w".to_owned(), tensor)]), true));
    let (_, message) = limited(&room, "sample --prompt a --model file.pt");
    assert!(message.contains("no tensor that begins with `model.diffusion_model.`"), "{message}");
}

#[test]
fn claimed_lengths() {
    for (code, width) in [(b'X', 4), (b'B', 4), (0x8d_u8, 8), (0x8e, 8), (0x96, 8)] {
        let claim = if width == 4 { 0xffff_fff0u64 } else { 1 << 62 };
        let program = pickled(&[&[code], &claim.to_le_bytes()[..width], b"abc."]);
        refuses(&format!("length of 0x{code:02x}"), &program, "not a readable torch file");
    }
}

#[test]
fn nesting_sharing_and_numbers_of_values() {
    let deep = pickled(&[&b"}X\x01\x00\x00\x00a".repeat(200_000), b"N", &b"s".repeat(200_000), b"."]);
    refuses("dictionaries in dictionaries", &deep, "nested");
    let lists = pickled(&[&b"]".repeat(3_000_000), &b"a".repeat(2_999_999), b"."]);
    refuses("lists in lists", &lists, "found none");
    refuses("five million values", &pickled(&[&b"}".repeat(5_000_000), b"."]), "values");
    let pairs = [b"](".to_vec(), b"K\x01K\x02\x86".repeat(100_000), b"eq\x00\x85q\x01".to_vec()].concat();
    let calls = b"ccollections\nOrderedDict\nh\x01R0".repeat(100_000);
    refuses("a list copied again and again", &pickled(&[&pairs, &calls, b"."]), "copies");
}

#[test]
fn tensors_larger_than_their_storage() {
    let int = |n: i32| [b"J".as_slice(), &n.to_le_bytes()].concat();
    let side = int(i32::MAX);
    let storage =
        [b"((".to_vec(), text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu"), int(i32::MAX)];
    let tensor = [
        b"}".to_vec(),
        text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(),
        storage.concat(),
        b"tQK\x00(".to_vec(),
        side.repeat(2),
        b"t(K\x00K\x00t\x89NtRs.".to_vec(),
    ];
    let program = [b"\x80\x02".to_vec(), tensor.concat()].concat();
    let bytes = archive(&[("data.pkl", &program), ("byteorder", b"little"), ("data/0", &[0; 64])]);
    refuses("four quintillion numbers in 64 bytes", &bytes, "`w`");
}

/// Marks every entry of an archive as Deflated and `size` bytes long when unpacked, in both of a zip's lists.
fn deflated(mut bytes: Vec<u8>, size: u32) -> Vec<u8> {
    for (signature, method, length) in [(b"PK\x03\x04", 8, 22), (b"PK\x01\x02", 10, 24)] {
        let places: Vec<usize> =
            bytes.windows(4).enumerate().filter(|(_, w)| w == signature).map(|(at, _)| at).collect();
        assert!(!places.is_empty());
        for at in places {
            bytes[at + method..at + method + 2].copy_from_slice(&8u16.to_le_bytes());
            bytes[at + length..at + length + 4].copy_from_slice(&size.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn packed_archives_and_long_lists() {
    let plain = archive(&[("data.pkl", b"\x80\x02}."), ("data/0", &[0; 64])]);
    refuses("a zip bomb", &deflated(plain.clone(), 0xffff_fff0), "without compression");
    // The record at the end says how many entries there are, here as many as it can.
    let mut crowded = plain;
    let end = crowded.windows(4).rposition(|w| w == b"PK\x05\x06").unwrap();
    crowded[end + 8..end + 12].copy_from_slice(&[0xfe, 0xff, 0xfe, 0xff]);
    refuses("65,534 entries in a short file", &crowded, "file.pt");
}
