//! Both encodings carry the same values, and refuse the same.

use proptest::prelude::*;
use serde_json::{Map, json};

use super::super::strict::{self, Unsound};
use super::*;
use crate::codes;

/// Itself, or its inverse where it is beyond what is taken.
fn kept(number: f64) -> f64 {
    if number.abs() <= (1_u64 << 53) as f64 {
        number
    } else {
        1.0 / number
    }
}

/// What a method's params can be: of every type and nesting that is taken.
fn any_value() -> impl Strategy<Value = Value> {
    let exact = 1_i64 << 53;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-exact..=exact).prop_map(Value::from),
        any::<f64>().prop_map(|f| Value::from(kept(f))),
        any::<f32>().prop_map(|f| Value::from(kept(f.into()))),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..8)
                .prop_map(|map| Value::from(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Read back as the other end would, whatever the encoding.
fn read_back(wire: &Wire) -> Value {
    match wire {
        Wire::Text(text) => serde_json::from_str(text).unwrap(),
        Wire::Binary(bytes) => rmp_serde::from_slice(bytes).unwrap(),
    }
}

proptest! {
    #[test]
    fn a_request_is_the_same_in_both_encodings(
        id in "\\PC{1,40}", method in "[a-z.]{1,40}", params in proptest::option::of(any_value()),
        trace in proptest::option::of("[0-9a-f-]{0,60}"),
    ) {
        let mut frame = json!({ "type": "req", "id": id, "method": method });
        if let Some(params) = &params {
            frame["params"] = params.clone();
        }
        if let Some(trace) = &trace {
            frame["traceparent"] = trace.as_str().into();
        }
        let text = serde_json::to_string(&frame).unwrap();
        let bytes = rmp_serde::to_vec_named(&frame).unwrap();
        let of_text = Encoding::Json.read(text.as_bytes()).unwrap();
        let of_bytes = Encoding::MsgPack.read(&bytes).unwrap();
        prop_assert_eq!(&of_text, &of_bytes);
        let seen = of_text.params.unwrap();
        prop_assert_eq!(seen, params.filter(|p| !p.is_null()).unwrap_or_else(|| json!({})));
    }

    #[test]
    fn an_answer_is_the_same_in_both_encodings(id in "\\PC{1,40}", payload in any_value(), seq in 0_u64..1 << 53) {
        let mut details = Map::new();
        details.insert("of".into(), payload.clone());
        let error = ErrorBody::with(codes::INVALID_PARAMS, id.clone(), details);
        for write in [
            &(|e: Encoding| e.ok(&id, &payload).unwrap()) as &dyn Fn(Encoding) -> Wire,
            &|e| e.error(&id, &error).unwrap(),
            &|e| e.event("tick", &payload, Some(seq)).unwrap(),
            &|e| e.event("tick", &payload, None).unwrap(),
        ] {
            let text = write(Encoding::Json);
            let bytes = write(Encoding::MsgPack);
            prop_assert!(matches!(text, Wire::Text(_)) && matches!(bytes, Wire::Binary(_)));
            prop_assert_eq!(read_back(&text), read_back(&bytes));
        }
    }

    #[test]
    fn what_one_encoding_reads_it_writes_and_reads_again(bytes in proptest::collection::vec(0_u8.., 0..64)) {
        if let Ok(value) = strict::msgpack(&bytes) {
            let again = rmp_serde::to_vec_named(&value).unwrap();
            prop_assert_eq!(strict::msgpack(&again).unwrap(), value.clone());
            let text = serde_json::to_vec(&value).unwrap();
            prop_assert_eq!(strict::json(&text).unwrap(), value);
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.split('-').filter(|d| !d.is_empty());
    digits.map(|d| u8::from_str_radix(d, 16).unwrap()).collect()
}

/// kawanet/msgpack-test-suite (MIT, beside the file): every form of every value that JSON has too is read as that
/// value; what JSON has not (bytes, extensions, timestamps, whole numbers beyond 2^53) is refused.
#[test]
fn the_msgpack_test_suite_passes_through_our_reader() {
    let suite = include_str!("../../tests/vectors/msgpack/msgpack-test-suite.json");
    let suite: Map<String, Value> = serde_json::from_str(suite).unwrap();
    let (mut taken, mut refused) = (0, 0);
    for (group, cases) in &suite {
        for case in cases.as_array().unwrap() {
            let forms = case["msgpack"].as_array().unwrap();
            let (kind, value) = case
                .as_object()
                .unwrap()
                .iter()
                .find(|(kind, _)| *kind != "msgpack")
                .unwrap();
            for form in forms {
                let form = form.as_str().unwrap();
                let read = strict::msgpack(&unhex(form));
                let expected = match kind.as_str() {
                    "binary" | "ext" | "timestamp" => None,
                    "bignum" => value.as_str().and_then(|digits| {
                        let number: i128 = digits.parse().unwrap();
                        (number.abs() <= 1 << 53)
                            .then(|| Value::from(i64::try_from(number).unwrap()))
                    }),
                    "number" => (value.as_f64().unwrap().abs() <= (1_u64 << 53) as f64)
                        .then(|| value.clone()),
                    _ => Some(value.clone()),
                };
                match (expected, read) {
                    (Some(expected), Ok(read)) => {
                        // The suite gives whole numbers in float forms too: the same number, of another type.
                        let same = read == expected
                            || (read.is_number() && read.as_f64() == expected.as_f64());
                        assert!(same, "{group} {form}: {read} is not {expected}");
                        taken += 1;
                    }
                    (None, Err(_)) => refused += 1,
                    other => panic!("{group} {form}: {other:?}"),
                }
            }
        }
    }
    assert!(taken > 150 && refused > 40, "{taken} {refused}");
}

#[test]
fn both_encodings_refuse_what_does_not_round_trip() {
    let deep = |open: &[u8], close: &[u8], n: usize| {
        [open.repeat(n), b"\x01".to_vec(), close.repeat(n)].concat()
    };
    // {"a": 1, "a": 2}, at the top and inside.
    assert_eq!(
        strict::msgpack(b"\x82\xa1a\x01\xa1a\x02"),
        Err(Unsound::Twice("a".into()))
    );
    assert_eq!(
        strict::msgpack(b"\x91\x81\xa1x\x82\xa1a\x01\xa1a\x02"),
        Err(Unsound::Twice("a".into()))
    );
    // The same key in another of its forms: str 8.
    assert_eq!(
        strict::msgpack(b"\x82\xa1a\x01\xd9\x01a\x02"),
        Err(Unsound::Twice("a".into()))
    );
    for not_finite in [
        &b"\xca\x7f\x80\x00\x00"[..],
        b"\xca\xff\x80\x00\x00",
        b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
        b"\xcf\x00\x20\x00\x00\x00\x00\x00\x01",
        b"\xd3\xff\xdf\xff\xff\xff\xff\xff\xff",
        b"\xcb\x43\x50\x00\x00\x00\x00\x00\x00",
    ] {
        assert_eq!(
            strict::msgpack(not_finite),
            Err(Unsound::Number),
            "{not_finite:x?}"
        );
    }
    assert_eq!(
        strict::msgpack(b"\xcf\x00\x20\x00\x00\x00\x00\x00\x00"),
        Ok(json!(1_u64 << 53))
    );
    assert!(strict::msgpack(&deep(b"\x91", b"", 32)).is_ok());
    for depth in [33, 100, 100_000] {
        assert_eq!(
            strict::msgpack(&deep(b"\x91", b"", depth)),
            Err(Unsound::Deep)
        );
        assert_eq!(
            strict::msgpack(&deep(b"\x81\xa1a", b"", depth)),
            Err(Unsound::Deep)
        );
    }
    for bad in [
        // A key that is no text: a number, nil, bytes, a list.
        &b"\x81\x01\x02"[..],
        b"\x81\xc0\x02",
        b"\x81\xc4\x01a\x02",
        b"\x81\x90\x02",
        // Bytes, an extension, a timestamp where a value is meant; the type that is never used.
        b"\xc4\x01a",
        b"\x91\xd4\x05\x00",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc1",
        // Text that is no UTF-8.
        b"\xa2\xc3\x28",
        // More follows, or less is there than announced.
        b"\xc0\xc0",
        b"\x90\xc1",
        // What follows only begins.
        b"\xc0\x91",
        b"\x90\x81\xa1a",
        b"\xc0\xde\x00\xa1\x61\xc0",
        b"\x92\x01",
        b"\xdd\xff\xff\xff\xff\x01",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xffabc",
        b"",
    ] {
        assert!(strict::msgpack(bad).is_err(), "{bad:x?}");
    }
}

#[test]
fn a_packed_frame_that_is_refused_is_answered_under_its_id_where_it_has_one() {
    let pack = |frame: &Value| rmp_serde::to_vec_named(frame).unwrap();
    let id = |bytes: &[u8]| match Request::unpack(bytes) {
        Err(FrameError::NotRequest { id, .. }) => id,
        other => panic!("{other:?}"),
    };
    let wrong = pack(&json!({"id": "7", "method": "m", "type": "res"}));
    assert_eq!(id(&wrong).as_deref(), Some("7"));
    let mut trailing = pack(&json!({"id": "7", "method": "m", "type": "req"}));
    trailing.push(0xc0);
    assert_eq!(id(&trailing).as_deref(), Some("7"));
    assert_eq!(id(&[0x93, 1, 2, 3]), None);
    let bytes = [
        &b"\x84\xa2id\xa17\xa4type\xa3req\xa6method\xa1m\xa6params"[..],
        b"\x82\xa1a\x01\xa1a\x01",
    ]
    .concat();
    let request = Request::unpack(&bytes).unwrap();
    assert_eq!(request.params, Err(Unsound::Twice("a".into())));
}

#[test]
fn messagepack_is_spoken_only_when_it_is_asked_for_by_name() {
    let of = |offers: &str| Encoding::offered(offers.split(','));
    assert_eq!(of("portcullis.msgpack.v1"), Encoding::MsgPack);
    assert_eq!(of("chat, portcullis.msgpack.v1"), Encoding::MsgPack);
    for other in ["", "chat", "portcullis.msgpack.v2", "PORTCULLIS.MSGPACK.V1"] {
        assert_eq!(of(other), Encoding::Json, "{other}");
    }
}
