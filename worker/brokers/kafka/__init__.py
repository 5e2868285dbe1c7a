"""The Kafka broker: Apache Kafka through aiokafka."""
