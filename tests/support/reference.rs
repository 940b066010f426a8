//! The Llama-like families in f64, a row at a time and an expert at a time, transcribed from the official
//! code and sharing nothing with the networks that it is compared to.

use std::collections::HashMap;
use std::f64::consts::TAU;

use candle_core::{DType, Tensor};
use serde_json::Value;

type Row = Vec<f64>;

/// A checkpoint's config.json and weights.
pub struct Reference {
    config: Value,
    tensors: HashMap<String, (Vec<usize>, Row)>,
}

impl Reference {
    pub fn new(config: &Value, tensors: &HashMap<String, Tensor>) -> Self {
        let read = |(name, tensor): (&String, &Tensor)| {
            let values = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
            (
                name.clone(),
                (tensor.dims().to_vec(), values.to_vec1().unwrap()),
            )
        };
        Self {
            config: config.clone(),
            tensors: tensors.iter().map(read).collect(),
        }
    }

    /// Logits of `tokens` at positions 0, 1, …, where `allowed(i, j)` says whether i attends to j.
    pub fn logits(&self, tokens: &[u32], allowed: impl Fn(usize, usize) -> bool) -> Vec<Row> {
        let embedding = if self.is_llada2() {
            "model.word_embeddings.weight"
        } else {
            "model.embed_tokens.weight"
        };
        let (shape, embedding) = &self.tensors[embedding];
        let token = |t: &u32| embedding[*t as usize * shape[1]..][..shape[1]].to_vec();
        let mut rows: Vec<Row> = tokens.iter().map(token).collect();
        for layer in 0..self.size("num_hidden_layers") {
            let layer = format!("model.layers.{layer}");
            let normed = self.normed(&format!("{layer}.input_layernorm"), &rows);
            add(&mut rows, &self.attention(&layer, &normed, &allowed));
            let normed = self.normed(&format!("{layer}.post_attention_layernorm"), &rows);
            let mlp: Vec<Row> = normed.iter().map(|x| self.mlp(&layer, x)).collect();
            add(&mut rows, &mlp);
        }
        let rows = self.normed("model.norm", &rows);
        let head = |x: &Row| match self.tensors.get("lm_head.weight") {
            Some((_, head)) => product(head, x),
            None => product(embedding, x),
        };
        rows.iter().map(head).collect()
    }

    fn attention(
        &self,
        layer: &str,
        rows: &[Row],
        allowed: impl Fn(usize, usize) -> bool,
    ) -> Vec<Row> {
        let heads = self.size("num_attention_heads");
        let kv_heads = self.config["num_key_value_heads"]
            .as_u64()
            .map_or(heads, |n| n as usize);
        let head_dim = self.config["head_dim"]
            .as_u64()
            .map_or(self.size("hidden_size") / heads, |n| n as usize);
        let name = |separate: &str, fused: &str| {
            if self.is_llada2() {
                format!("{layer}.attention.{fused}")
            } else {
                format!("{layer}.self_attn.{separate}")
            }
        };
        let split = |x: Row| -> Vec<Row> { x.chunks(head_dim).map(<[f64]>::to_vec).collect() };
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for (position, x) in rows.iter().enumerate() {
            let (mut queries, mut keys, values);
            if self.is_llada2() {
                let all = split(self.linear(&name("", "query_key_value"), x));
                queries = all[..heads].to_vec();
                keys = all[heads..heads + kv_heads].to_vec();
                values = all[heads + kv_heads..].to_vec();
            } else {
                queries = split(self.linear(&name("q_proj", ""), x));
                keys = split(self.linear(&name("k_proj", ""), x));
                values = split(self.linear(&name("v_proj", ""), x));
            }
            let norm = name("q_norm", "query_layernorm");
            if self.tensors.contains_key(&format!("{norm}.weight")) {
                queries = self.normed(&norm, &queries);
                keys = self.normed(&name("k_norm", "key_layernorm"), &keys);
            }
            for head in queries.iter_mut().chain(&mut keys) {
                self.rotate(head, position);
            }
            q.push(queries);
            k.push(keys);
            v.push(values);
        }
        let attend = |i: usize| {
            let mut output = Vec::new();
            for (head, query) in q[i].iter().enumerate() {
                let kv = head / (heads / kv_heads);
                let seen: Vec<usize> = (0..rows.len()).filter(|j| allowed(i, *j)).collect();
                let scores = seen
                    .iter()
                    .map(|j| dot(query, &k[*j][kv]) / (head_dim as f64).sqrt());
                let weights = softmax(&scores.collect::<Row>());
                for d in 0..head_dim {
                    let values = seen.iter().map(|j| v[*j][kv][d]);
                    output.push(weights.iter().zip(values).map(|(w, v)| w * v).sum());
                }
            }
            self.linear(&name("o_proj", "dense"), &output)
        };
        (0..rows.len()).map(attend).collect()
    }

    fn rotate(&self, head: &mut [f64], position: usize) {
        let factor = self.config["partial_rotary_factor"].as_f64().unwrap_or(1.0);
        let dim = (head.len() as f64 * factor) as usize;
        let base = &self.config["rope_parameters"]["rope_theta"];
        let base = base
            .as_f64()
            .or(self.config["rope_theta"].as_f64())
            .unwrap();
        for i in 0..dim / 2 {
            let mut frequency = base.powf(-(2.0 * i as f64) / dim as f64);
            let scaling = &self.config["rope_scaling"];
            if scaling["rope_type"] == "llama3" {
                let number = |name: &str| scaling[name].as_f64().unwrap();
                let (factor, context) =
                    (number("factor"), number("original_max_position_embeddings"));
                let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
                let wavelength = TAU / frequency;
                if wavelength > context / low {
                    frequency /= factor;
                } else if wavelength > context / high {
                    let smooth = (context / wavelength - low) / (high - low);
                    frequency = (1.0 - smooth) * frequency / factor + smooth * frequency;
                }
            }
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = (head[i], head[i + dim / 2]);
            head[i] = a * cos - b * sin;
            head[i + dim / 2] = b * cos + a * sin;
        }
    }

    fn mlp(&self, layer: &str, x: &Row) -> Row {
        let mlp = format!("{layer}.mlp");
        if !self.tensors.contains_key(&format!("{mlp}.gate.weight")) {
            return self.gated(&mlp, x);
        }
        let logits = self.linear(&format!("{mlp}.gate"), x);
        let mut output = vec![0.0; x.len()];
        for (expert, weight) in self.route(&mlp, &logits) {
            let expert = self.gated(&format!("{mlp}.experts.{expert}"), x);
            output
                .iter_mut()
                .zip(expert)
                .for_each(|(o, e)| *o += weight * e);
        }
        for shared in [
            format!("{mlp}.shared_experts"),
            format!("{layer}.shared_expert"),
        ] {
            if self
                .tensors
                .contains_key(&format!("{shared}.up_proj.weight"))
            {
                let shared = self.gated(&shared, x);
                output.iter_mut().zip(shared).for_each(|(o, s)| *o += s);
            }
        }
        output
    }

    fn route(&self, mlp: &str, logits: &[f64]) -> Vec<(usize, f64)> {
        let count = self.size("num_experts_per_tok");
        if self.is_llada2() {
            let scores: Row = logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
            let bias = &self.tensors[&format!("{mlp}.gate.expert_bias")].1;
            let mut biased: Row = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
            let groups = self.size("n_group");
            let size = biased.len() / groups;
            let score = |group: usize| {
                let mut group = biased[group * size..][..size].to_vec();
                group.sort_by(|a, b| b.total_cmp(a));
                group[0] + group[1]
            };
            let group_scores: Row = (0..groups).map(score).collect();
            let kept = top(&group_scores, self.size("topk_group"));
            for (expert, score) in biased.iter_mut().enumerate() {
                if !kept.contains(&(expert / size)) {
                    *score = f64::NEG_INFINITY;
                }
            }
            let chosen = top(&biased, count);
            let sum: f64 = chosen.iter().map(|e| scores[*e]).sum();
            let divisor = if count > 1 { sum + 1e-20 } else { 1.0 };
            let scale = self.config["routed_scaling_factor"].as_f64().unwrap();
            let weigh = |e: usize| (e, scores[e] / divisor * scale);
            return chosen.into_iter().map(weigh).collect();
        }
        let mut scores = softmax(logits);
        if let Some((_, bias)) = self.tensors.get(&format!("{mlp}.expert_bias")) {
            scores.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
        }
        let chosen = top(&scores, count);
        // LLaDA-MoE does not read norm_topk_prob.
        let normalized = self.config["architectures"][0] == "SDARMoeForCausalLM"
            && self.config["norm_topk_prob"] == true;
        let sum: f64 = chosen.iter().map(|e| scores[*e]).sum();
        let divisor = if normalized { sum } else { 1.0 };
        chosen
            .into_iter()
            .map(|e| (e, scores[e] / divisor))
            .collect()
    }

    fn gated(&self, mlp: &str, x: &Row) -> Row {
        let gate = self.linear(&format!("{mlp}.gate_proj"), x);
        let up = self.linear(&format!("{mlp}.up_proj"), x);
        let gated = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u);
        self.linear(&format!("{mlp}.down_proj"), &gated.collect())
    }

    fn linear(&self, name: &str, x: &Row) -> Row {
        let mut y = product(&self.tensors[&format!("{name}.weight")].1, x);
        if let Some((_, bias)) = self.tensors.get(&format!("{name}.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    }

    fn normed(&self, name: &str, rows: &[Row]) -> Vec<Row> {
        let weight = &self.tensors[&format!("{name}.weight")].1;
        let eps = self.config["rms_norm_eps"].as_f64().unwrap();
        let norm = |x: &Row| {
            let scale = (dot(x, x) / x.len() as f64 + eps).sqrt();
            x.iter().zip(weight).map(|(x, w)| x / scale * w).collect()
        };
        rows.iter().map(norm).collect()
    }

    fn size(&self, name: &str) -> usize {
        self.config[name].as_u64().unwrap() as usize
    }

    fn is_llada2(&self) -> bool {
        self.config["architectures"][0] == "LLaDA2MoeModelLM"
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn product(weight: &[f64], x: &[f64]) -> Row {
    weight.chunks(x.len()).map(|row| dot(row, x)).collect()
}

fn add(rows: &mut [Row], others: &[Row]) {
    for (row, other) in rows.iter_mut().zip(others) {
        row.iter_mut().zip(other).for_each(|(r, o)| *r += o);
    }
}

fn softmax(scores: &[f64]) -> Row {
    let exp: Row = scores.iter().map(|s| s.exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

fn top(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order[..count].to_vec()
}
