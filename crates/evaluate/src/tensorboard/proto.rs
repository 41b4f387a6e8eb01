//! The part of TensorBoard's protocol buffers that we write and read (tensorboard/compat/proto: event, summary,
//! tensor). Field numbers stand beside their names.

use super::{Event, EventValue};

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;
/// TensorProto.dtype of strings.
const DT_STRING: u64 = 7;
/// Summary.Image.colorspace of RGB.
const RGB: u64 = 3;

/// Appends base-128 digits, least significant first.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn tag(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    tag(out, field, VARINT);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u64, data: &[u8]) {
    tag(out, field, BYTES);
    varint(out, data.len() as u64);
    out.extend_from_slice(data);
}

/// An Event: wall_time = 1, step = 2, file_version = 3, summary = 5.
pub(super) fn encode(event: &Event) -> Vec<u8> {
    let mut out = Vec::new();
    tag(&mut out, 1, FIXED64);
    out.extend_from_slice(&event.wall_time.to_le_bytes());
    // Negative steps take ten digits, as protobuf's int64 does.
    number(&mut out, 2, event.step as u64);
    if let Some(version) = &event.file_version {
        bytes(&mut out, 3, version.as_bytes());
    }
    if !event.values.is_empty() {
        let mut summary = Vec::new();
        for (name, value) in &event.values {
            bytes(&mut summary, 1, &encode_value(name, value));
        }
        bytes(&mut out, 5, &summary);
    }
    out
}

/// A Summary.Value: tag = 1, simple_value = 2, image = 4, tensor = 8, metadata = 9.
fn encode_value(name: &str, value: &EventValue) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 1, name.as_bytes());
    match value {
        EventValue::Scalar(scalar) => {
            tag(&mut out, 2, FIXED32);
            out.extend_from_slice(&scalar.to_le_bytes());
        }
        EventValue::Image { height, width, png } => {
            // Summary.Image: height = 1, width = 2, colorspace = 3, encoded_image_string = 4.
            let mut image = Vec::new();
            number(&mut image, 1, u64::from(*height));
            number(&mut image, 2, u64::from(*width));
            number(&mut image, 3, RGB);
            bytes(&mut image, 4, png);
            bytes(&mut out, 4, &image);
        }
        EventValue::Text(text) => {
            // TensorProto: dtype = 1, tensor_shape = 2 { dim = 2 { size = 1 } }, string_val = 8.
            let mut tensor = Vec::new();
            number(&mut tensor, 1, DT_STRING);
            bytes(&mut tensor, 2, &[0x12, 2, 0x08, 1]);
            bytes(&mut tensor, 8, text.as_bytes());
            bytes(&mut out, 8, &tensor);
            // SummaryMetadata: plugin_data = 1 { plugin_name = 1 }.
            let mut plugin = Vec::new();
            bytes(&mut plugin, 1, b"text");
            let mut metadata = Vec::new();
            bytes(&mut metadata, 1, &plugin);
            bytes(&mut out, 9, &metadata);
        }
    }
    out
}

/// One field of a message: number and content.
enum Field<'a> {
    Number(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
}

/// The fields of a message; `None` where it is malformed.
fn fields(mut message: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = read_varint(&mut message)?;
        let field = match key & 7 {
            VARINT => Field::Number(read_varint(&mut message)?),
            FIXED64 => Field::Fixed64(*take::<8>(&mut message)?),
            FIXED32 => Field::Fixed32(*take::<4>(&mut message)?),
            BYTES => {
                let length = usize::try_from(read_varint(&mut message)?).ok()?;
                let (data, rest) = message.split_at_checked(length)?;
                message = rest;
                Field::Bytes(data)
            }
            _ => return None,
        };
        found.push((key >> 3, field));
    }
    Some(found)
}

fn take<'a, const N: usize>(message: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = message.split_first_chunk::<N>()?;
    *message = rest;
    Some(taken)
}

fn read_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let [digit] = *take::<1>(message)?;
        value |= u64::from(digit & 0x7f) << shift;
        if digit < 0x80 {
            return Some(value);
        }
    }
    None
}

fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

/// Reads what [`encode`] writes, and events of other writers as far as they use the same fields.
pub(super) fn decode(data: &[u8]) -> Option<Event> {
    let mut event = Event { wall_time: 0.0, step: 0, file_version: None, values: Vec::new() };
    for (number, field) in fields(data)? {
        match (number, field) {
            (1, Field::Fixed64(raw)) => event.wall_time = f64::from_le_bytes(raw),
            (2, Field::Number(step)) => event.step = step as i64,
            (3, Field::Bytes(version)) => event.file_version = Some(text(version)),
            (5, Field::Bytes(summary)) => {
                for (number, field) in fields(summary)? {
                    if let (1, Field::Bytes(value)) = (number, field) {
                        event.values.extend(decode_value(value)?);
                    }
                }
            }
            _ => {}
        }
    }
    Some(event)
}

/// Outer `None`: malformed; inner `None`: a kind of value we do not know.
fn decode_value(data: &[u8]) -> Option<Option<(String, EventValue)>> {
    let (mut name, mut found) = (String::new(), None);
    for (number, field) in fields(data)? {
        match (number, field) {
            (1, Field::Bytes(data)) => name = text(data),
            (2, Field::Fixed32(raw)) => found = Some(EventValue::Scalar(f32::from_le_bytes(raw))),
            (4, Field::Bytes(image)) => found = Some(decode_image(image)?),
            (8, Field::Bytes(tensor)) => {
                let strings = fields(tensor)?.into_iter().find_map(|(number, field)| match (number, field) {
                    (8, Field::Bytes(data)) => Some(EventValue::Text(text(data))),
                    _ => None,
                });
                found = strings.or(found);
            }
            _ => {}
        }
    }
    Some(found.map(|value| (name, value)))
}

fn decode_image(data: &[u8]) -> Option<EventValue> {
    let (mut height, mut width, mut png) = (0, 0, Vec::new());
    for (number, field) in fields(data)? {
        match (number, field) {
            (1, Field::Number(value)) => height = u32::try_from(value).ok()?,
            (2, Field::Number(value)) => width = u32::try_from(value).ok()?,
            (4, Field::Bytes(data)) => png = data.to_vec(),
            _ => {}
        }
    }
    Some(EventValue::Image { height, width, png })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = EventValue> {
        prop_oneof![
            any::<f32>().prop_filter("NaN differs from itself", |x| !x.is_nan()).prop_map(EventValue::Scalar),
            any::<String>().prop_map(EventValue::Text),
            (any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..20))
                .prop_map(|(height, width, png)| EventValue::Image { height, width, png }),
        ]
    }

    proptest! {
        #[test]
        fn events_come_back(
            wall_time in 0f64..4e9, step in any::<i64>(), file_version in any::<Option<String>>(),
            values in prop::collection::vec((any::<String>(), value()), 0..5),
        ) {
            let event = Event { wall_time, step, file_version, values };
            prop_assert_eq!(decode(&encode(&event)), Some(event));
        }

        #[test]
        fn garbage_is_refused_or_read_but_never_panics(data in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&data);
        }
    }
}
