//! Reads protobuf's wire format by hand (protobuf.dev/programming-guides/encoding), and the few fields of
//! `ExportTraceServiceRequest` (opentelemetry-proto 1.x, trace.proto) that tests look at. Shares no code with the
//! exporter that it judges.

/// One field's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Wire type 0.
    Number(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2: text, bytes or a message.
    Bytes(Vec<u8>),
    /// Wire type 5.
    Fixed32(u32),
}

impl Value {
    /// As text.
    pub fn text(&self) -> String {
        match self {
            Self::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            Self::Number(n) | Self::Fixed64(n) => n.to_string(),
            Self::Fixed32(n) => n.to_string(),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            other => panic!("not bytes: {other:?}"),
        }
    }

    fn number(&self) -> u64 {
        match self {
            Self::Number(n) | Self::Fixed64(n) => *n,
            other => panic!("no number: {other:?}"),
        }
    }
}

/// A message: its fields in order.
#[derive(Debug)]
pub struct Message(Vec<(u64, Value)>);

impl Message {
    /// Reads all of it; `None` where it is malformed.
    pub fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let value = match key & 7 {
                0 => Value::Number(varint(&mut bytes)?),
                1 => Value::Fixed64(u64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?)),
                2 => {
                    let len = usize::try_from(varint(&mut bytes)?).ok()?;
                    Value::Bytes(take(&mut bytes, len)?.to_vec())
                }
                5 => Value::Fixed32(u32::from_le_bytes(take(&mut bytes, 4)?.try_into().ok()?)),
                _ => return None,
            };
            fields.push((key >> 3, value));
        }
        Some(Self(fields))
    }

    /// All values of a field.
    pub fn all(&self, field: u64) -> impl Iterator<Item = &Value> {
        self.0
            .iter()
            .filter(move |(number, _)| *number == field)
            .map(|(_, value)| value)
    }

    /// All values at the end of a path of field numbers.
    pub fn at(&self, path: &[u64]) -> Vec<Value> {
        let [field, rest @ ..] = path else {
            panic!("an empty path")
        };
        if rest.is_empty() {
            return self.all(*field).cloned().collect();
        }
        self.all(*field)
            .flat_map(|v| Self::parse(v.bytes()).unwrap().at(rest))
            .collect()
    }
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// A span as the collector sees it.
#[derive(Debug)]
pub struct Span {
    /// 16 bytes.
    pub trace: Vec<u8>,
    /// 8 bytes.
    pub id: Vec<u8>,
    /// 8 bytes, or none.
    pub parent: Vec<u8>,
    /// Its name.
    pub name: String,
    /// Unix nanoseconds.
    pub start: u64,
    /// Unix nanoseconds.
    pub end: u64,
    /// Key and value, in order.
    pub attributes: Vec<(String, String)>,
    /// How many events it has.
    pub events: usize,
}

/// The spans of an `ExportTraceServiceRequest`: `resource_spans` 1, `scope_spans` 2, `spans` 2.
pub fn spans(request: &[u8]) -> Vec<Span> {
    let request = Message::parse(request).unwrap();
    request
        .at(&[1, 2, 2])
        .iter()
        .map(|span| read(&Message::parse(span.bytes()).unwrap()))
        .collect()
}

fn read(span: &Message) -> Span {
    let bytes = |field| {
        span.all(field)
            .next()
            .map(|v| v.bytes().to_vec())
            .unwrap_or_default()
    };
    let attributes = span
        .all(9)
        .map(|pair| {
            let pair = Message::parse(pair.bytes()).unwrap();
            let key = pair.all(1).next().unwrap().text();
            // AnyValue: string 1, bool 2, int 3, double 4.
            let value = Message::parse(pair.all(2).next().unwrap().bytes()).unwrap();
            (
                key,
                value.0.first().map(|(_, v)| v.text()).unwrap_or_default(),
            )
        })
        .collect();
    Span {
        trace: bytes(1),
        id: bytes(2),
        parent: bytes(4),
        name: String::from_utf8(bytes(5)).unwrap(),
        start: span.all(7).next().unwrap().number(),
        end: span.all(8).next().unwrap().number(),
        attributes,
        events: span.all(11).count(),
    }
}
