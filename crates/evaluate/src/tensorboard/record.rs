//! TFRecord framing: length, its checksum, data, its checksum.

/// Bytes before the data: u64 length and u32 checksum of the length.
const HEADER: usize = 12;

/// The rotated CRC-32C that TFRecord stores (tensorflow/core/lib/hash/crc32c.h).
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// One framed record.
pub(super) fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + HEADER + 4);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked_crc(data).to_le_bytes());
    record
}

/// Splits a file into the data of its records and stops at the first that is cut off or damaged (a killed writer
/// leaves such a tail).
pub(super) fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    while let Some((data, rest)) = first(bytes) {
        records.push(data);
        bytes = rest;
    }
    records
}

fn first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (length_crc, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*length_crc) != masked_crc(length) {
        return None;
    }
    let (data, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let (data_crc, rest) = rest.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*data_crc) == masked_crc(data)).then_some((data, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_frame_of_a_known_record() {
        let record = frame(b"abc");
        assert_eq!(record[..8], 3u64.to_le_bytes());
        // CRC-32C of "123456789" is 0xe3069283 (RFC 3720).
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
        assert_eq!(record.len(), 3 + 16);
    }

    proptest! {
        #[test]
        fn a_cut_file_keeps_its_whole_records(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6), cut in 0usize..60,
        ) {
            let file: Vec<u8> = records.iter().flat_map(|data| frame(data)).collect();
            prop_assert_eq!(split(&file), records.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let kept = file.len().saturating_sub(cut);
            let whole = split(&file[..kept]);
            let sizes: Vec<usize> = records.iter().map(|data| data.len() + 16).collect();
            let expected = (0..=sizes.len()).rev().find(|&n| sizes[..n].iter().sum::<usize>() <= kept).unwrap();
            prop_assert_eq!(whole.len(), expected);
        }

        #[test]
        fn a_flipped_bit_ends_the_file(data in prop::collection::vec(any::<u8>(), 1..40), place in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut file = frame(&data);
            let place = place.index(file.len());
            file[place] ^= 1 << bit;
            prop_assert!(split(&file).is_empty());
        }
    }
}
