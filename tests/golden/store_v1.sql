BEGIN TRANSACTION;
CREATE TABLE phasewatch_attempts (
	run_id VARCHAR(255) NOT NULL, 
	attempt INTEGER NOT NULL, 
	name VARCHAR(255) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, 
	started_at DOUBLE NOT NULL, 
	ended_at DOUBLE, 
	resumed_step BIGINT, 
	last_step BIGINT, 
	heartbeat DOUBLE NOT NULL, 
	config TEXT, 
	host TEXT NOT NULL, 
	machine TEXT NOT NULL, 
	pid BIGINT NOT NULL, 
	process_start TEXT NOT NULL, 
	PRIMARY KEY (run_id, attempt)
);
INSERT INTO "phasewatch_attempts" VALUES('0ld',1,'old','failed','killed',1.79600007721632671359e+09,1.7960000772355079651e+09,NULL,20,1.79600007728667807578e+09,NULL,'host','boot',17975,'639046');
INSERT INTO "phasewatch_attempts" VALUES('0ld',2,'old','finished','',1.79600007730722451212e+09,1.79600007730935883522e+09,15,25,1796000077.31165,NULL,'host','boot',17975,'639046');
CREATE TABLE phasewatch_estimates (
	observation_id INTEGER NOT NULL, 
	body TEXT NOT NULL, 
	chain_loss BLOB NOT NULL, 
	PRIMARY KEY (observation_id), 
	FOREIGN KEY(observation_id) REFERENCES phasewatch_observations (id)
);
INSERT INTO "phasewatch_estimates" VALUES(1,'{"step": 7, "lambda_hat": 12.5, "lambda_stderr": "inf", "init_loss": 0.125, "n_beta": 100.0, "n_samples": 1024, "step_size": 1e-05, "localization": 1.0, "num_chains": 2, "num_draws": 3, "num_burnin": 1, "status": "unconverged", "duration_seconds": 0.5, "reason": "R-hat 1.7", "nu_hat": "-inf", "nu_stderr": null, "functional_variance": null, "waic": null, "waic_stderr": null, "wbic": null, "n_data": 60000, "sample_unit": "sample", "rhat": 1.7, "ess": "nan", "num_diverged": 0, "num_resets": 0, "virial": "nan", "drift": "nan", "step_inflation": "nan", "batch_inflation": "nan", "acceptance": null, "sharpness": null, "sampler": "baoab", "engine": "vmap", "warm": false, "probe_mode": "eval", "chain_shape": [2, 3]}',X'000000000000E03F000000000000F87F000000000000F0FF9A9999999999B93F9A9999999999C93F343333333333D33F');
CREATE TABLE phasewatch_observations (
	id INTEGER NOT NULL, 
	stream_id INTEGER NOT NULL, 
	attempt INTEGER NOT NULL, 
	step BIGINT NOT NULL, 
	epoch INTEGER, 
	value DOUBLE, 
	stderr DOUBLE, 
	nonfinite SMALLINT, 
	timestamp DOUBLE, 
	duration_seconds DOUBLE, 
	status VARCHAR(16) NOT NULL, 
	reason TEXT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(stream_id) REFERENCES phasewatch_streams (id)
);
INSERT INTO "phasewatch_observations" VALUES(1,2,1,10,NULL,2.5,0.25,NULL,1700000010.25,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(2,1,1,1,0,1.0,NULL,NULL,1000000000.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(3,1,1,2,0,0.5,NULL,NULL,1000000001.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(4,1,1,3,0,3.33333333333333314829e-01,NULL,NULL,1000000002.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(5,1,1,4,0,0.25,NULL,NULL,1000000003.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(6,1,1,5,0,0.2,NULL,NULL,1000000004.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(7,1,1,6,0,1.66666666666666657414e-01,NULL,NULL,1000000005.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(8,1,1,7,0,1.42857142857142849212e-01,NULL,NULL,1000000006.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(9,1,1,8,0,0.125,NULL,NULL,1000000007.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(10,1,1,9,0,1.11111111111111104943e-01,NULL,NULL,1000000008.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(11,1,1,10,0,0.1,NULL,NULL,1000000009.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(12,1,1,11,0,9.09090909090909116141e-02,NULL,NULL,1000000010.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(13,1,1,12,0,8.33333333333333287074e-02,NULL,NULL,1000000011.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(14,1,1,13,0,7.6923076923076927347e-02,NULL,NULL,1000000012.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(15,1,1,14,0,7.14285714285714246063e-02,NULL,NULL,1000000013.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(16,1,1,15,0,6.66666666666666657414e-02,NULL,NULL,1000000014.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(17,1,1,16,0,0.0625,NULL,NULL,1000000015.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(18,1,1,17,0,5.8823529411764705066e-02,NULL,NULL,1000000016.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(19,1,1,18,0,5.55555555555555524716e-02,NULL,NULL,1000000017.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(20,1,1,19,0,5.26315789473684181309e-02,NULL,NULL,1000000018.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(21,1,1,20,0,0.05,NULL,NULL,1000000019.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(22,1,2,16,1,0.01,NULL,NULL,1000000100.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(23,1,2,17,1,0.01,NULL,NULL,1000000100.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(24,1,2,18,1,0.01,NULL,NULL,1000000100.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(25,1,2,19,1,0.01,NULL,NULL,1000000100.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(26,1,2,20,1,0.01,NULL,NULL,1000000100.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(27,1,2,21,1,0.01,NULL,NULL,1000000100.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(28,1,2,22,1,0.01,NULL,NULL,1000000100.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(29,1,2,23,1,0.01,NULL,NULL,1000000100.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(30,1,2,24,1,0.01,NULL,NULL,1000000100.0,0.0,'ok',NULL);
INSERT INTO "phasewatch_observations" VALUES(31,1,2,25,1,0.01,NULL,NULL,1000000100.0,0.0,'ok',NULL);
CREATE TABLE phasewatch_outbox (
	id INTEGER NOT NULL, 
	"key" VARCHAR(255) NOT NULL, 
	transition_seq INTEGER NOT NULL, 
	transition_id VARCHAR(64) NOT NULL, 
	run_id VARCHAR(255) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	target VARCHAR(100) NOT NULL, 
	delivery VARCHAR(16) NOT NULL, 
	created_at DOUBLE NOT NULL, 
	sent_at DOUBLE, 
	tries INTEGER NOT NULL, 
	not_before DOUBLE, 
	claimed_by TEXT, 
	claimed_until DOUBLE, 
	last_error TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE ("key"), 
	FOREIGN KEY(transition_seq) REFERENCES phasewatch_transitions (seq)
);
INSERT INTO "phasewatch_outbox" VALUES(1,'t1/confirmed/1-json-aaaaaaaa',1,'t1','0ld','confirmed','1-json-aaaaaaaa','waiting',1.7960000772354903221e+09,NULL,0,NULL,NULL,NULL,'');
CREATE TABLE phasewatch_schema (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "phasewatch_schema" VALUES(1);
CREATE TABLE phasewatch_streams (
	id INTEGER NOT NULL, 
	run_id VARCHAR(255) NOT NULL, 
	name VARCHAR(255) NOT NULL, 
	unit VARCHAR(255) NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (run_id, name, unit)
);
INSERT INTO "phasewatch_streams" VALUES(1,'0ld','train_loss','nats');
INSERT INTO "phasewatch_streams" VALUES(2,'0ld','llc','1');
CREATE TABLE phasewatch_transitions (
	seq INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	run_id VARCHAR(255) NOT NULL, 
	attempt INTEGER NOT NULL, 
	recorded_step BIGINT NOT NULL, 
	recorded_at DOUBLE NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	onset_step BIGINT NOT NULL, 
	detected_step BIGINT NOT NULL, 
	end_step BIGINT, 
	body TEXT NOT NULL, 
	PRIMARY KEY (seq)
);
INSERT INTO "phasewatch_transitions" VALUES(1,'t1','0ld',1,20,1.7960000772354903221e+09,'generalisation','confirmed',-1,9,NULL,'{"id": "t1", "run": "0ld", "attempt": 1, "kind": "generalisation", "status": "confirmed", "onset_step": -1, "detected_step": 9, "end_step": null, "epoch": null, "detected_at": 1700000090.5, "severity": "inf", "before": {"val_loss": 2.0}, "after": {"val_loss": "nan"}, "where": [["block.1", 0.25], ["head", 0.125]], "repeats": 0, "evidence": {"val_loss": {"detected_step": 9, "onset_step": -1, "direction": "down", "kind": "shift", "score": 1.5, "run_length": 10, "value_before": 2.0, "value_after": "nan"}}}');
CREATE INDEX ix_phasewatch_attempts_name ON phasewatch_attempts (name);
CREATE INDEX ix_phasewatch_transitions_run_id ON phasewatch_transitions (run_id);
CREATE INDEX phasewatch_observations_by_step ON phasewatch_observations (stream_id, step);
CREATE INDEX phasewatch_outbox_by_target ON phasewatch_outbox (target, delivery, id);
CREATE INDEX phasewatch_outbox_by_transition ON phasewatch_outbox (transition_id, target);
COMMIT;
