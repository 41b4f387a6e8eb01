//! Files as `torch.save` writes them since torch 1.6, for tests of any crate.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{Cursor, Write};

use tch::{Kind, Tensor};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

/// A zip archive of `archive/<name>` entries, uncompressed.
pub fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        writer.start_file(format!("archive/{name}"), options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A pickle's text.
pub fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn tuple(numbers: &[i64]) -> Vec<u8> {
    let numbers = numbers.iter().flat_map(|n| [b"J".as_slice(), &(*n as i32).to_le_bytes()].concat());
    [b"(".to_vec(), numbers.collect(), b"t".to_vec()].concat()
}

/// The whole file of f32 or f16 tensors by name; within `state_dict` where `nested`, as training scripts save checkpoints.
pub fn torch_file(tensors: &BTreeMap<String, Tensor>, nested: bool) -> Vec<u8> {
    let mut pickle = b"\x80\x02".to_vec();
    if nested {
        pickle.extend([b"}".to_vec(), text("state_dict")].concat());
    }
    pickle.extend(b"}(");
    let mut storages = Vec::new();
    for (number, (name, tensor)) in tensors.iter().enumerate() {
        let (class, width) = match tensor.kind() {
            Kind::Float => ("FloatStorage", 4),
            Kind::Half => ("HalfStorage", 2),
            other => panic!("{other:?}"),
        };
        let mut bytes = vec![0u8; width * tensor.numel()];
        tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
        let shape = tensor.size();
        let mut strides: Vec<i64> =
            shape.iter().rev().scan(1, |next, side| Some(std::mem::replace(next, *next * side))).collect();
        strides.reverse();
        pickle.extend(text(name));
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.extend([text("storage"), format!("ctorch\n{class}\n").into_bytes(), text(&number.to_string())].concat());
        pickle.extend([text("cpu"), [b"J".as_slice(), &(tensor.numel() as i32).to_le_bytes()].concat()].concat());
        pickle.extend([b"tQK\x00".to_vec(), tuple(&shape), tuple(&strides)].concat());
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        storages.push((format!("data/{number}"), bytes));
    }
    pickle.extend(if nested { b"us.".as_slice() } else { b"u." });
    let first = [("data.pkl", pickle.as_slice()), ("byteorder", b"little")];
    let rest = storages.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
    archive(&first.into_iter().chain(rest).collect::<Vec<_>>())
}
